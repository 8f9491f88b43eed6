"""Image inputs of inference: files, folders and arrays through host ops."""

import collections
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, ImageOps

from vit_jax.data import folders, ops_language
from vit_jax.data.ops import label as label_ops
from vit_jax.data.ops.decode import decode
from vit_jax.data.ops.resize import resample
from vit_jax.errors import UserError
from vit_jax.printable import plural, printable

_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
_PHOTOS = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
# In the names of all ops, also of a user's own, that change the size.
_SIZE_WORDS = ('resize', 'crop', 'pad')


class Reader:
  """Reads one image of any kind and puts it through the host ops.

  Attributes:
    resized: whether a photo was resized because the ops do not do it.
  """

  def __init__(
    self,
    ops: str,
    num_channels: int | None,
    *,
    image_size: tuple[int, int] | None = None,
    trusted: bool = False,
  ):
    """Parses the ops.

    Args:
      ops: host ops as an evaluation has them. Those of `data/ops/label.py` are
        left out: there are no labels.
      num_channels: of the images that the model takes. Images that have 1, 3
        or 4 become RGB or grey where the model takes that. None is not
        known: grey and RGB arrays stay as they are.
      image_size: (height, width) that the model takes, or None for any. Photos
        (files and PIL images, not arrays) are resized to it where no op
        changes the size, as in runs on data sets whose images all have it.
      trusted: whether the user wrote the ops, see `ops_language.parse`.

    Raises:
      UserError: ops that do not parse, or that a file may not name.
    """
    skipped = ops_language.public_functions(label_ops)
    segments = [s for s in ops_language.segments(ops) if s.name not in skipped]
    text = '|'.join(s.text for s in segments)
    self._ops = ops_language.parse(text, trusted=trusted)
    # Also of a user's own decoder, such as my_project.ops.decode_dicom.
    decoders = [s for s in segments if 'decode' in s.name.rpartition('.')[2]]
    self._ops_decode = bool(decoders)
    self._upright = any(s.kwargs.get('exif_orientation') for s in decoders)
    self._num_channels = num_channels
    channels = num_channels if num_channels in (1, 3) else None
    self._decode = decode(channels)
    changes = any(
      word in segment.name for segment in segments for word in _SIZE_WORDS
    )
    self._image_size = None if changes else image_size
    self.resized = False

  def read(self, image: Any) -> np.ndarray:
    """Returns `[H, W, C]` as the device ops take it.

    Args:
      image: a path, the bytes of a file, a PIL image, or an array `[H, W]` or
        `[H, W, C]`, numpy's or what it can convert.

    Raises:
      UserError: it cannot be read, or has other channels than the model takes;
        the message begins with the path, if there is one.
    """
    rng = np.random.default_rng(0)  # Ops of an evaluation have no use for it.
    try:
      content = self._content(image)
      example = {'image': content}
      if isinstance(content, np.ndarray):
        converts = content.ndim == 2 or content.shape[2] in _MODES
        if self._num_channels is None:
          converts = content.ndim == 2 or content.shape[2] == 4
      else:
        # A decoder among the ops is given the bytes: it may be the user's own.
        converts = not self._ops_decode
      if converts:
        example = self._decode(example, rng)
      array = self._ops(example, rng)['image']
      if isinstance(image, _PHOTOS):
        array = self._fit(array, rng)
      self._check(array)
    except UserError as e:
      raise UserError(f'{where(image)}{e}') from e
    except Exception as e:
      e.add_note(f'{where(image)}while the image was read')
      raise
    return array

  def _fit(self, array: Any, rng: np.random.Generator) -> Any:
    """Returns an image with the channels and, if none did it, the size."""
    if not isinstance(array, np.ndarray) or array.ndim != 3:
      return array  # An error; see _check.
    known = self._num_channels is not None
    if known and array.shape[2] in _MODES and array.dtype == np.uint8:
      array = self._decode({'image': array}, rng)['image']
    if self._image_size not in (None, array.shape[:2]):
      array = resample(array, self._image_size)
      self.resized = True
    return array

  def _content(self, image: Any) -> bytes | np.ndarray:
    if isinstance(image, bytes | bytearray | memoryview):
      return bytes(image)
    if isinstance(image, str | os.PathLike):
      try:
        path = epath.Path(image).expanduser()
        # Of other places, such as gs://, epath reads.
        is_here = os.path.exists(path)
        return folders.read_file(path) if is_here else path.read_bytes()
      except OSError as e:
        raise UserError(f'cannot be read: {e.strerror or e}') from e
    if isinstance(image, Image.Image):
      return self._from_pillow(image)
    array = np.asarray(image)
    if array.ndim not in (2, 3) or array.dtype.kind not in 'uif':
      raise UserError(
        'an image is a path, the bytes of a file, a PIL image or an array'
        f' [H, W, C] of numbers; got {type(image).__name__} of shape'
        f' {array.shape}, {array.dtype}'
      )
    return array

  def _from_pillow(self, image: Image.Image) -> np.ndarray:
    if image.mode.startswith('I') or image.mode == 'F':
      raise UserError(
        f'a PIL image of mode {image.mode} has no known range: convert it to 8'
        ' bits, or give the path of its file'
      )
    if self._upright:
      image = ImageOps.exif_transpose(image)
    array = np.asarray(image.convert(_MODES.get(self._num_channels, 'RGB')))
    return array[:, :, None] if array.ndim == 2 else array

  def _check(self, array: Any) -> None:
    if not isinstance(array, np.ndarray) or array.ndim != 3:
      raise UserError(
        'the ops made no array [H, W, C] of it; ops for encoded images begin'
        ' with decode'
      )
    if self._num_channels not in (None, array.shape[2]):
      raise UserError(
        f'it has {array.shape[2]} channels ({list(array.shape)}), and the model'
        f' takes {self._num_channels}'
      )


def as_list(images: Any) -> tuple[Sequence[Any], bool]:
  """Returns images as a sequence, and whether it was a single one.

  A list or tuple is several, and so is an array of rank 4.
  """
  if isinstance(images, list | tuple):
    return images, False
  if getattr(images, 'ndim', 0) == 4:
    return list(np.asarray(images)), False
  return [images], True


def where(image: Any) -> str:
  """Returns the path of an image and a colon, or nothing, for messages."""
  is_path = isinstance(image, str | os.PathLike)
  return f'{os.fspath(image)}: ' if is_path else ''


def find(
  paths: Iterable[str | os.PathLike], *, on_log: Callable[[str], Any] = print
) -> list[str]:
  """Returns the files that are meant: folders give all images below them.

  Files keep the order in which they are given, whatever they are called; those
  of a folder are sorted. `data/folders.py` says which files of a folder are
  images; hidden files and folders are left out.

  Args:
    on_log: is given a line of text for each folder with files that are left
      out because of their suffix.

  Raises:
    UserError: a path that does not exist, a device or a pipe, or a folder
      without images; all of them in one message.
  """
  found, problems = [], []
  for path in map(os.fspath, paths):
    path = os.path.expanduser(path)
    if os.path.isdir(path):
      others = collections.Counter()
      inside = folders.images_below(path, others)
      found += [os.path.join(path, name) for name in inside]
      what = folders.kinds(others)
      if not inside:
        suffixes = ', *'.join(folders.SUFFIXES)
        problems.append(
          f'{printable(path)} holds no images (*{suffixes}), but '
          f'{what or "no files"}'
        )
      elif others:
        on_log(
          f'{printable(path)}: '
          f'{plural(others.total(), "file is", "files are")} left out: {what}; '
          f'images end in {", ".join(folders.SUFFIXES)}'
        )
    elif os.path.isfile(path):
      found.append(path)
    elif os.path.exists(path):
      problems.append(
        f'{printable(path)} is not a regular file: copy what it holds into one'
      )
    else:
      problems.append(f'there is no file or folder {printable(path)}')
  if problems:
    raise UserError('\n'.join(problems))
  return found
