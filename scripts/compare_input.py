"""Compare our input pipeline with tf.data and timm's loader, in one run.

  python scripts/compare_input.py
  python scripts/compare_input.py --pipeline=deit

All read the same synthetic JPEG files of 500 x 400 px from a folder, with two
threads or worker processes, and give batches of 64 uint8 images of 224 x 224.
`crop` is RandomResizedCrop, bilinear and antialiased, and a flip; `deit` is
DeiT's: bicubic, a flip and RandAugment (tf.data has none and stays out). They
take turns; the table has the median over the turns of images per second and per
CPU-second (threads and processes together). Needs the parity extra for timm and
tensorflow-cpu for tf.data; those not installed are left out. Prints the
processor first: ratios differ from one to another.
"""

import argparse
import importlib.util
import os
import pathlib
import statistics
import sys
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import fix_torchvision
import machine

from vit_jax.data import pipeline, throughput
from vit_jax.data.sources import synthetic_jpegs
from vit_jax.parallel import host_memory

_BATCH, _SIZE, _WORKERS = 64, 224, 2
_OPS = {
  'crop': 'decode|random_resized_crop(224)|flip_lr',
  'deit': (
    "decode|random_resized_crop(224, method='bicubic')|flip_lr"
    "|rand_augment('rand-m9-mstd0.5-inc1')"
  ),
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--pipeline', choices=tuple(_OPS), default='crop')
  parser.add_argument('--seconds', type=float, default=8, help='of a turn')
  parser.add_argument('--turns', type=int, default=3)
  args = parser.parse_args()
  host_memory.keep_freed_memory()
  loaders = {'vit_jax': _ours}
  others = {'timm': ('timm', _timm, "-e '.[parity]'")}
  if args.pipeline == 'crop':
    others['tf.data'] = ('tensorflow', _tf_data, 'tensorflow-cpu')
  for name, (module, loader, package) in others.items():
    if importlib.util.find_spec(module):
      loaders[name] = loader
    else:
      print(f'without {name}: pip install {package}', file=sys.stderr)
  with tempfile.TemporaryDirectory() as folder:
    _write_files(pathlib.Path(folder))
    found = {name: [] for name in loaders}
    for _ in range(args.turns):
      for name, loader in loaders.items():
        found[name].append(
          _measure(loader(folder, args.pipeline), args.seconds)
        )
  print(f'{machine.describe()}\n')
  print(f'| {args.pipeline} | images/s | images/CPU-second |')
  print('|---|---|---|')
  medians = {
    name: [statistics.median(x) for x in zip(*turns, strict=True)]
    for name, turns in found.items()
  }
  for name, (per_second, per_cpu_second) in medians.items():
    print(f'| {name} | {per_second:.0f} | {per_cpu_second:.0f} |')
  for name in list(medians)[1:]:
    ratios = (
      ours / theirs
      for ours, theirs in zip(medians['vit_jax'], medians[name], strict=True)
    )
    print(f'vit_jax / {name}: ' + ', '.join(f'{ratio:.2f}' for ratio in ratios))


def _write_files(folder: pathlib.Path) -> None:
  source = synthetic_jpegs.Source('train', num_examples=512, num_classes=4)
  for i in range(len(source)):
    example = source[i]
    path = folder / 'train' / str(example['label']) / f'{i}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(example['image'])


def _measure(batches, seconds: float) -> tuple[float, float]:
  """Returns images per second and per CPU-second of `next(batches)`."""
  for _ in range(4):
    next(batches)
  num, cpu, start = 0, throughput.cpu_seconds(), time.monotonic()
  while time.monotonic() - start < seconds:
    num += len(next(batches))
  elapsed = time.monotonic() - start
  cpu = throughput.cpu_seconds() - cpu
  batches.close()
  return num / elapsed, num / cpu


def _ours(folder: str, name: str):
  batches = pipeline.TrainInput(
    data=dict(name='image_folder', data_dir=folder, split='train'),
    ops=_OPS[name],
    batch_size=_BATCH,
    seed=0,
    num_threads=_WORKERS,
  ).batches()
  try:
    for batch in batches:
      yield batch['image']
  finally:
    batches.close()


def _timm(folder: str, name: str):
  fix_torchvision.fix()
  import timm.data
  import torch
  from timm.data import auto_augment
  from timm.data.loader import fast_collate

  # timm 1.0.31 asks for 0 bits now and then, which Pillow 13 refuses.
  posterize = auto_augment.posterize
  auto_augment.NAME_TO_OP['PosterizeIncreasing'] = lambda image, bits, **kw: (
    posterize(image, max(bits, 1), **kw)
  )
  deit = name == 'deit'
  transform = timm.data.create_transform(
    (3, _SIZE, _SIZE),
    is_training=True,
    use_prefetcher=True,  # uint8, normalised on the device, as ours.
    color_jitter=None,
    auto_augment='rand-m9-mstd0.5-inc1' if deit else None,
    interpolation='bicubic' if deit else 'bilinear',
  )
  dataset = timm.data.ImageDataset(f'{folder}/train', transform=transform)
  loader = torch.utils.data.DataLoader(
    dataset,
    _BATCH,
    shuffle=True,
    drop_last=True,
    num_workers=_WORKERS,
    collate_fn=fast_collate,
    persistent_workers=True,
  )
  while True:
    for images, _ in loader:
      yield images


def _tf_data(folder: str, name: str):
  del name
  import tensorflow as tf

  def read(path):
    image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      tf.shape(image),
      tf.zeros([1, 0, 4]),
      area_range=(0.08, 1.0),
      aspect_ratio_range=(3 / 4, 4 / 3),
      min_object_covered=0,
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
    )
    image = tf.slice(image, begin, size)
    image = tf.image.resize(image, (_SIZE, _SIZE), antialias=True)
    image = tf.image.random_flip_left_right(image)
    return tf.saturate_cast(tf.round(image), tf.uint8)

  files = tf.data.Dataset.list_files(f'{folder}/train/*/*.jpg')
  images = files.shuffle(512).repeat().map(read, num_parallel_calls=_WORKERS)
  options = tf.data.Options()
  options.threading.private_threadpool_size = _WORKERS
  options.autotune.enabled = False
  batches = images.batch(_BATCH).prefetch(2).with_options(options)
  yield from batches.as_numpy_iterator()


if __name__ == '__main__':
  main()
