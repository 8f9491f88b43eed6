"""A report on a dataset: classes, sizes, duplicates, broken images."""

import collections
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.data import watchdog
from vit_jax.data.ops_language import Op
from vit_jax.data.storage import shards
from vit_jax.errors import UserError

_FORMATS = {  # The first bytes of files.
  'jpeg': rb'\xff\xd8',
  'png': rb'\x89PNG',
  'gif': rb'GIF8',
  'webp': rb'RIFF....WEBP',
  'avif': rb'....ftypavi[fs]',
  'bmp': rb'BM',
  'tiff': rb'II\*\0|MM\0\*|II\+\0|MM\0\+',
  'npy': rb'\x93NUMPY',
}


class _Record(NamedTuple):
  digest: int
  num_bytes: int
  kind: str
  label: Any
  size: tuple[int, int]
  problem: str | None


class ScanResult(NamedTuple):
  """The examples of one split, a list entry or row for each of them."""

  source: Any
  digests: np.ndarray  # uint64, of the content as it is stored
  sizes: np.ndarray  # height and width; 0 where the image is broken
  labels: list[tuple[int, ...]]
  formats: dict[str, int]
  num_bytes: int
  broken: dict[int, str]


def scan(
  source: Any, ops: Op, num_threads: int, advance: Callable[[], None]
) -> ScanResult:
  """Reads every example of a source and puts it through the ops."""
  num = len(source)
  digests, sizes = np.zeros(num, np.uint64), np.zeros([num, 2], np.int64)
  labels, formats, total = [], collections.Counter(), 0
  broken = {}
  reads = watchdog.Watchdog(source.describe)
  records = reads.in_order(
    lambda i: _record(source, i, ops), range(num), num_threads
  )
  for i, record in enumerate(records):
    digests[i], sizes[i] = record.digest, record.size
    labels.append(tuple(shards.class_ids(record.label)))
    formats[record.kind] += 1
    total += record.num_bytes
    if record.problem is not None:
      broken[i] = record.problem
    advance()
  formats = dict(formats.most_common())
  return ScanResult(source, digests, sizes, labels, formats, total, broken)


def report(found: Mapping[str, ScanResult]) -> dict[str, Any]:
  """Returns a report of the splits as values for JSON.

  `{'splits': {name: {...}}, 'duplicates': [{'names', 'splits',
  'labels_differ'}]}`; duplicates have the same content to the byte.
  """
  return {
    'splits': {name: _split(one) for name, one in found.items()},
    'duplicates': _duplicates(found),
  }


def _record(source: Any, i: int, ops: Op) -> _Record:
  image, label, num_bytes, digest, kind = None, None, 0, 0, 'unreadable'
  try:
    example = source[i]
    image, label = example['image'], example.get('label')
    digest, num_bytes, kind = _content(image)
    decoded = ops(example, np.random.default_rng(0))['image']
    if not isinstance(decoded, np.ndarray) or decoded.ndim != 3:
      raise UserError('the ops made no array [H, W, C] of it')
    return _Record(digest, num_bytes, kind, label, decoded.shape[:2], None)
  except MemoryError:  # A failure of the process, not of the image.
    raise
  except BaseException as e:  # A SystemExit would end it with code 0.
    problem = str(e) if isinstance(e, UserError) else repr(e)
    return _Record(digest, num_bytes, kind, label, (0, 0), problem)


def _content(image: Any) -> tuple[int, int, str]:
  """Returns a number for the content, its bytes, and the format."""
  if isinstance(image, np.ndarray) and image.ndim:
    content, kind = np.ascontiguousarray(image).tobytes(), 'array'
    start = f'{image.dtype}{image.shape}'.encode()
  else:
    content, start = bytes(image), b''
    matches = (
      name
      for name, magic in _FORMATS.items()
      if re.match(magic, content[:16], re.DOTALL)
    )
    kind = next(matches, 'other')
  digest = hashlib.blake2b(start + content, digest_size=8).digest()
  return int.from_bytes(digest), len(content), kind


def _split(found: ScanResult) -> dict[str, Any]:
  source = found.source
  counts = collections.Counter(i for ids in found.labels for i in ids)
  num = source.num_classes
  if num is None:
    num = max(counts, default=-1) + 1
  names = source.class_names or [str(i) for i in range(num)]
  good = found.sizes[found.sizes[:, 0] > 0]
  return dict(
    num_examples=len(source),
    num_bytes=found.num_bytes,
    num_classes=source.num_classes,
    classes={name: counts[i] for i, name in enumerate(names)},
    formats=found.formats,
    height=_range(good[:, 0]),
    width=_range(good[:, 1]),
    broken=[
      dict(name=source.describe(i), problem=problem)
      for i, problem in found.broken.items()
    ],
  )


def _range(values: np.ndarray) -> list[float]:
  """Returns least, median, most; nothing for nothing."""
  if not len(values):
    return []
  return [int(values.min()), float(np.median(values)), int(values.max())]


def _duplicates(found: Mapping[str, ScanResult]) -> list[dict[str, Any]]:
  places = [
    (name, i) for name, one in found.items() for i in range(len(one.digests))
  ]
  digests = np.concatenate([one.digests for one in found.values()])
  order = np.argsort(digests, kind='stable')
  cuts = np.flatnonzero(np.diff(digests[order])) + 1
  groups = []
  for members in np.split(order, cuts):
    if len(members) < 2 or not digests[members[0]]:  # 0: could not be read
      continue
    group = [places[m] for m in members]
    groups.append(
      dict(
        names=[found[split].source.describe(i) for split, i in group],
        splits=[split for split, _ in group],
        labels_differ=len({found[s].labels[i] for s, i in group}) > 1,
      )
    )
  # The worst first: a test set that was trained on, then labels that disagree.
  groups.sort(
    key=lambda group: (
      len(set(group['splits'])) == 1,
      not group['labels_differ'],
      group['names'],
    )
  )
  return groups
