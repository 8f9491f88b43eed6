"""Writing a source as array_record files, one resumable shard at a time.

A shard appears under its name when it is complete, with its metadata beside it
as JSON. A run that is killed continues with the first missing shard, and the
result is the same to the byte; so two processes may write the same target.
"""

import collections
import hashlib
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from vit_jax import files
from vit_jax.data import folders, watchdog
from vit_jax.data.ops import decode as decode_lib, resize
from vit_jax.data.sources import array_record
from vit_jax.errors import RunError, UserError

_EXAMPLES_PER_SHARD = 8192
_MAX_SHARDS = 512  # The process that reads them holds all of them open.
_NPY = b'\x93NUMPY'


class Writer:
  """Writes one split of a source into a folder."""

  def __init__(
    self,
    source: Any,
    folder: pathlib.Path,
    *,
    settings: Mapping[str, Any],
    skip: bool,
    num_threads: int,
    resize_small: int | None = None,
    quality: int = 95,
    examples_per_shard: int | None = None,
  ):
    """Divides the source into shards and begins or continues the folder.

    Args:
      source: written whole and in its order.
      folder: for the files, `<target>/<split>`.
      settings: stored with the files; a folder continues with the same alone.
      skip: whether examples that cannot be read are left out.
      num_threads: for reading.
      resize_small: of images, see `shrink`; None leaves them as they are.
      quality: of the JPEGs that shrinking makes, 1 to 95 as Pillow counts.
      examples_per_shard: None is 8,192, or more for 512 files at most.

    Raises:
      UserError: the folder was begun with other settings, or is not writable.
    """
    if folders.as_utf8(str(folder)) != str(folder):
      raise UserError(
        f'{folders.as_utf8(str(folder))}: the name of the target is not UTF-8, '
        'which ArrayRecord cannot open'
      )
    if resize_small is not None and resize_small < 1:
      raise UserError(f'resize_small is at least 1; got {resize_small}')
    if not 1 <= quality <= 95:
      raise UserError(f'quality is 1 to 95; got {quality}')
    self._source, self._folder = source, folder
    self._skip, self._num_threads = skip, num_threads
    self._resize = dict(resize_small=resize_small, quality=quality)
    num, size = len(source), examples_per_shard
    if size is None:
      size = max(_EXAMPLES_PER_SHARD, -(-num // _MAX_SHARDS))
    if size < 1:
      raise UserError(f'examples_per_shard is at least 1; got {size}')
    self._parts = [range(i, min(i + size, num)) for i in range(0, num, size)]
    self.num_shards = len(self._parts)
    digest = hashlib.sha256()
    for i in range(num):
      name = source.describe(i) + '\n'
      digest.update(name.encode(errors='backslashreplace'))
    self._plan = dict(settings) | dict(
      resize=None if resize_small is None else self._resize,
      num_examples=num,
      examples_per_shard=size,
      class_names=source.class_names,
      num_classes=source.num_classes,
      records=digest.hexdigest(),
    )
    if source.column_texts:  # Otherwise dataset.json has no such key.
      self._plan['column_texts'] = source.column_texts
    self._begin()

  def existing_shards(self) -> dict[int, dict[str, Any]]:
    """Returns the metadata of the shards that exist in full size, by number."""
    shards = {k: _read(self._path(k, 'json')) for k in range(self.num_shards)}
    return {
      k: shard
      for k, shard in shards.items()
      if shard and not array_record.size_mismatch(self._folder, shard)
    }

  def write(self, k: int, advance: Callable[[], None]) -> dict[str, Any]:
    """Writes shard `k` and returns its metadata.

    Raises:
      UserError: an example cannot be read and is not to be skipped.
      RunError: the disk is full or the shard cannot be opened again.
    """
    path = self._path(k, 'array_record')
    try:
      with files.write_atomically(path, error=RunError) as part:
        shard = self._fill(part, self._parts[k], advance)
    except RuntimeError as e:  # also of the ArrayRecord library
      raise RunError(
        f'{e}; the complete files of {self._folder} remain: fix the cause and '
        'start the same command again'
      ) from e
    shard = dict(file=path.name) | shard
    _write(self._path(k, 'json'), shard)
    return shard

  def finish(self, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes `dataset.json` and returns its content."""
    counts: collections.Counter[str] = collections.Counter()
    for shard in shards:
      counts.update(shard['class_counts'])
    num_classes = self._plan['num_classes'] or 0
    info = self._plan | dict(
      num_examples=sum(shard['num_examples'] for shard in shards),
      num_bytes=sum(shard['num_bytes'] for shard in shards),
      class_counts=[counts[str(i)] for i in range(num_classes)],
      skipped=[name for shard in shards for name in shard['skipped']],
      shards=[
        {key: shard[key] for key in ('file', 'num_examples', 'num_bytes')}
        for shard in shards
      ],
    )
    _write(self._folder / folders.PREPARED, info)
    return info

  def _begin(self) -> None:
    """Stores the plan; raises if the folder was begun with another one."""
    path = self._folder / 'plan.json'
    begun, plan = _read(path), json.loads(json.dumps(self._plan))
    if begun is None:
      _write(path, plan, error=UserError)
      return
    differ = [
      f'{key}: was {begun.get(key)!r:.60}, is {plan.get(key)!r:.60}'
      for key in sorted(begun.keys() | plan.keys())
      if begun.get(key) != plan.get(key)
    ]
    if differ:
      raise UserError(
        f'{self._folder} was begun from something else; choose another target '
        'or delete it:\n  ' + '\n  '.join(differ)
      )

  def _fill(
    self, path: pathlib.Path, part: range, advance: Callable[[], None]
  ) -> dict[str, Any]:
    """Writes and reopens a file; returns its metadata without the name."""
    from array_record.python import array_record_module
    from flax import serialization

    counts: collections.Counter[int] = collections.Counter()
    skipped = []
    examples = watchdog.Watchdog(self._source.describe).in_order(
      self._example, part, self._num_threads
    )
    first = next(examples)
    # Images are compressed already; arrays are not.
    encoded = isinstance((first[0] or {}).get('image'), bytes)
    options = 'group_size:1' + (',uncompressed' if encoded else '')
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    try:
      for example, problem in itertools.chain([first], examples):
        advance()
        if example is None:
          skipped.append(problem)
          continue
        record = serialization.msgpack_serialize(example)
        writer.write(record)
        counts.update(class_ids(example.get('label')))
    finally:
      writer.close()
    num = len(part) - len(skipped)
    array_record.open_file(str(path), num).close()
    return dict(
      num_examples=num,
      num_bytes=path.stat().st_size,
      class_counts={str(i): counts[i] for i in sorted(counts)},
      skipped=skipped,
    )

  def _path(self, k: int, suffix: str) -> pathlib.Path:
    return self._folder / f'{k:05}-of-{self.num_shards:05}.{suffix}'

  def _example(self, i: int) -> tuple[dict | None, str]:
    """Returns an example with its name, or None and the problem."""
    try:
      name, example = self._source.describe(i), self._source[i]
      if self._resize['resize_small'] is not None:
        example = example | {'image': shrink(example['image'], **self._resize)}
      example = {
        key: value.item() if _is_scalar(value) else value
        for key, value in example.items()
      }
      return example | {'name': name}, ''
    except MemoryError:  # A failure of the process, not of the example.
      raise
    except BaseException as e:  # A SystemExit would end it with code 0.
      problem = e if isinstance(e, UserError) else repr(e)
      what = f'{self._source.describe(i)}: {problem}'
      if not self._skip:
        raise UserError(
          f'{what}\n(repair or remove it, or leave such images out with '
          '--on_error=skip)'
        ) from e
      return None, what


def shrink(image: Any, resize_small: int, quality: int) -> bytes | np.ndarray:
  """Returns an image whose shorter side has `resize_small` pixels at most.

  Bicubic, antialiased, the aspect ratio kept. An encoded image becomes an RGB
  JPEG (4:4:4, with the EXIF tag of its orientation); an array stays an array.
  An image that is small enough does not change by a byte.

  Raises:
    UserError: an encoded image that does not decode, or has bands.
  """
  if isinstance(image, np.ndarray) and image.ndim:
    return _shrink_array(image, resize_small)
  data = bytes(image.item() if isinstance(image, np.ndarray) else image)
  if data.startswith(_NPY):
    raise UserError(
      'resize_small makes RGB JPEGs, which hold no bands: leave it out, and '
      'resize with an op when they are read'
    )
  pixels = decode_lib.decode_image(data)
  small = _shrink_array(pixels, resize_small)
  if small is pixels:
    return data
  tags = Image.Exif()
  if (orientation := decode_lib.orientation(data)) != 1:
    tags[ExifTags.Base.Orientation] = orientation
  exif = tags.tobytes() if tags else b''
  file = io.BytesIO()
  Image.fromarray(small).save(
    file, 'JPEG', quality=quality, subsampling=0, exif=exif
  )
  return file.getvalue()


def class_ids(label: Any) -> list[int]:
  """Returns the class ids of a label: one, a list, a vector or None."""
  if label is None:
    return []
  label = np.asarray(label)
  if label.dtype.kind == 'f':
    return np.flatnonzero(label).tolist()
  return label.reshape(-1).tolist()


def _shrink_array(image: np.ndarray, side: int) -> np.ndarray:
  shorter = min(image.shape[:2])
  if shorter <= side:
    return image
  size = tuple(max(1, round(n * side / shorter)) for n in image.shape[:2])
  if image.ndim == 2:
    image = image[:, :, None]
  return resize.resample(image, size, method='bicubic')


def _is_scalar(value: Any) -> bool:
  return isinstance(value, np.generic | np.ndarray) and value.ndim == 0


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    return files.read_json(path, max_bytes=folders.MAX_PREPARED_BYTES)
  except UserError:
    return None  # It is made again.


def _write(path: pathlib.Path, content: Any, error=RunError) -> None:
  text = json.dumps(content, indent=1, ensure_ascii=False)
  with files.write_atomically(path, error=error) as part:
    # The parts of a path that are not UTF-8 become escapes of JSON.
    part.write_text(text, encoding='utf-8', errors='backslashreplace')
