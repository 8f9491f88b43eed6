"""Compare the pixels of an evaluation with those of TensorFlow and big_vision.

python scripts/compare_tensorflow.py photos/

reads the JPEGs below a folder and prints how many levels (0 to 255) ours are
off: on average, at most, and with their sign. Needs `pip install tensorflow`.
"""

import argparse
import collections

import numpy as np
import tensorflow as tf

from vit_jax.data import folders, ops_language

_AREA = "resize_small(256, method='area'{})|central_crop(224)"
_SQUARE = 'resize(224, antialias=False{})'


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folder')
  folder = parser.parse_args().folder
  names = folders.images_below(folder, collections.Counter())
  names = [n for n in names if n.lower().endswith(('.jpg', '.jpeg'))]
  print(f'{len(names)} JPEGs, TensorFlow {tf.__version__}')
  print(f'{"ops":80} {"mean":>7} {"max":>4} {"bias":>7}')
  for text, theirs in _cases():
    op, total = ops_language.parse(text), np.zeros(3)
    most = 0
    for name in names:
      data = folders.read_file(f'{folder}/{name}')
      ours = op({'image': data}, np.random.default_rng(0))['image']
      off = ours.astype(np.float32) - theirs(data)
      total += np.abs(off).sum(), off.sum(), off.size
      most = max(most, np.abs(off).max())
    mean, bias = total[:2] / total[2]
    print(f'{text:80} {mean:7.4f} {most:4.0f} {bias:+7.4f}', flush=True)


def _cases():
  """Yields ops, and the function of an encoded image that they should be."""
  fast, cut = "decode(dct='fast')", ', truncate=True'
  yield 'decode', _decoded
  yield fast, _decoded
  for decode, options in (('decode', ''), (fast, ''), (fast, cut)):
    yield f'{decode}|{_AREA.format(options)}', _big_vision
  for decode, options in (('decode', ''), (fast, cut)):
    yield f'{decode}|{_SQUARE.format(options)}', _squeezed


def _decoded(data: bytes) -> np.ndarray:
  image = tf.image.decode_image(data, channels=3, expand_animations=False)
  return image.numpy()


def _big_vision(data: bytes) -> np.ndarray:
  """Shorter side 256, area, cast to uint8; the central 224."""
  image = _decoded(data)
  ratio = np.float32(256) / np.float32(min(image.shape[:2]))
  size = [round(np.float32(n) * ratio) for n in image.shape[:2]]
  image = _cast(tf.image.resize(image, size, method='area'))
  top, left = ((n - 224) // 2 for n in size)
  return image[top : top + 224, left : left + 224]


def _squeezed(data: bytes) -> np.ndarray:
  return _cast(tf.image.resize(_decoded(data), (224, 224)))


def _cast(image: tf.Tensor) -> np.ndarray:
  return tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8).numpy()


if __name__ == '__main__':
  main()
