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


class ScanResult(NamedTuple):
  """The examples of one split, a list entry or row for each of them."""

  source: Any
  digests: np.ndarray  # uint64, of the content as it is stored
  sizes: np.ndarray  # height and width; 0 where the image is broken
  labels: list[tuple[int, ...]]
  formats: collections.Counter[str]
  num_bytes: int
  broken: dict[int, str]


def scan(
  source: Any, ops: Op, num_threads: int, advance: Callable[[], None]
) -> ScanResult:
  """Reads every example of a source and puts it through the ops."""

  def read(i: int):
    content, size, label, problem = (0, 0, 'unreadable'), (0, 0), None, None
    try:
      example = source[i]
      label, content = example.get('label'), _content(example['image'])
      image = ops(example, np.random.default_rng(0))['image']
      if not isinstance(image, np.ndarray) or image.ndim != 3:
        raise UserError('the ops made no array [H, W, C] of it')
      size = image.shape[:2]
    except MemoryError:  # A failure of the process, not of the image.
      raise
    except BaseException as e:  # A SystemExit would end it with code 0.
      problem = str(e) if isinstance(e, UserError) else repr(e)
    return *content, size, tuple(shards.class_ids(label)), problem

  num = len(source)
  digests, sizes = np.zeros(num, np.uint64), np.zeros([num, 2], np.int64)
  labels, formats, total, broken = [], collections.Counter(), 0, {}
  reads = watchdog.Watchdog(source.describe)
  for i, record in enumerate(reads.in_order(read, range(num), num_threads)):
    digests[i], num_bytes, kind, sizes[i], label, problem = record
    labels.append(label)
    formats[kind] += 1
    total += num_bytes
    if problem is not None:
      broken[i] = problem
    advance()
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
  height, width = (
    [int(x.min()), float(np.median(x)), int(x.max())] if len(good) else []
    for x in good.T
  )
  return dict(
    num_examples=len(source),
    num_bytes=found.num_bytes,
    num_classes=source.num_classes,
    classes={name: counts[i] for i, name in enumerate(names)},
    formats=dict(found.formats.most_common()),
    height=height,  # Least, median, most.
    width=width,
    broken=[
      dict(name=source.describe(i), problem=problem)
      for i, problem in found.broken.items()
    ],
  )


def _duplicates(found: Mapping[str, ScanResult]) -> list[dict[str, Any]]:
  digests, counts = np.unique(
    np.concatenate([one.digests for one in found.values()]), return_counts=True
  )
  twice = digests[(counts > 1) & (digests != 0)]  # 0: could not be read.
  places = collections.defaultdict(list)
  for split, one in found.items():
    for i in np.flatnonzero(np.isin(one.digests, twice)).tolist():
      places[one.digests[i]].append((split, i))
  groups = [
    dict(
      names=[found[split].source.describe(i) for split, i in group],
      splits=[split for split, _ in group],
      labels_differ=len({found[split].labels[i] for split, i in group}) > 1,
    )
    for group in places.values()
  ]
  # The worst first: a test set that was trained on, then labels that disagree.
  groups.sort(
    key=lambda group: (
      len(set(group['splits'])) == 1,
      not group['labels_differ'],
      group['names'],
    )
  )
  return groups
