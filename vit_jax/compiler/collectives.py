"""Communication in the text of a compiled program: kind, bytes, mesh axis."""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping

import numpy as np

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_CALL = re.compile(rf' ({"|".join(KINDS)})(-start)?\(')
_SHAPE = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')
_BITS = re.compile(r'[a-z]+(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
  """A kind of communication over some mesh axes.

  Attributes:
    kind: of KINDS.
    axes: names of mesh axes, or `('?',)` for groups that follow none of them.
    bytes: that one device holds of the results, per step.
    count: of such instructions, those in loops as often as they run.
  """

  kind: str
  axes: tuple[str, ...]
  bytes: int
  count: int = 1


def is_one(line: str) -> bool:
  """Returns whether a line of a program communicates."""
  return _CALL.search(line) is not None


def parse(line: str, mesh_shape: Mapping[str, int]) -> Collective | None:
  """Returns the communication of a line of a program, None if it has none."""
  call = _CALL.search(line)
  if call is None:
    return None
  result = line[: call.start()].partition(' = ')[2]
  size = num_bytes(result)
  if call[2] and call[1] != 'all-reduce':
    # The tuple of a start holds the arguments too, before the results; counters
    # after them have no dimension.
    shapes = [shape[0] for shape in _SHAPE.finditer(result) if shape[2]]
    size = sum(map(num_bytes, shapes[len(shapes) // 2 :]))
  return Collective(call[1], _axes(line, mesh_shape), size)


def merge(found: Mapping[Collective, int]) -> tuple[Collective, ...]:
  """Returns one entry per kind and axes, the largest first.

  Args:
    found: how often a step runs each.
  """
  size, count = collections.Counter(), collections.Counter()
  for one, times in found.items():
    size[one.kind, one.axes] += one.bytes * times
    count[one.kind, one.axes] += times
  merged = [Collective(*key, size[key], count[key]) for key in count]
  return tuple(sorted(merged, key=lambda one: -one.bytes))


def num_bytes(text: str) -> int:
  """Returns the bytes of all arrays whose shapes are in a text."""
  shapes = _SHAPE.findall(text)
  bits = (math.prod(_numbers(dims)) * _item_bits(t) for t, dims in shapes)
  return sum(bits) // 8


def _item_bits(dtype: str) -> int:
  bits = _BITS.match(dtype)
  return int(bits[1]) if bits else 8  # pred


def _axes(line: str, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
  """Returns the axes along which the devices of a group differ."""
  groups = _groups(line, math.prod(mesh_shape.values()))
  if groups is None:
    return ('?',)
  sizes = list(mesh_shape.values())
  places = np.stack(np.unravel_index(groups, sizes), axis=-1)  # [groups, n, 3]
  differ = (places != places[:, :1]).any(axis=(0, 1))
  return tuple(itertools.compress(mesh_shape, differ))


def _groups(line: str, num_devices: int) -> np.ndarray | None:
  """Returns the groups of devices `[groups, devices of a group]`."""
  pairs = re.search(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}', line)
  if pairs:
    return _listed(pairs[1])
  given = re.search(r'replica_groups=(.*)', line)
  if given is None:
    return None
  text = given[1]
  iota = re.match(r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
  if iota:
    shape, source, order = (_numbers(part) for part in iota.groups(default=''))
    ids = np.arange(num_devices).reshape(source)
    return ids.transpose(order or range(len(source))).reshape(shape)
  listed = re.match(r'\{((?:\{[\d,]*\},?)*)\}', text)
  if listed:
    if not listed[1]:  # All devices are one group.
      return np.arange(num_devices)[None]
    return _listed(listed[1])
  return _of_mesh(text, num_devices)


def _of_mesh(text: str, num_devices: int) -> np.ndarray | None:
  """Reads `mesh['axis_0'=2,'axis_1'=4] {'axis_1'}`, XLA's own mesh."""
  match = re.match(
    r'mesh\[([^\]]*)\](?:,? ?device_ids=(\S+))? \{([^}]*)\}', text
  )
  if match is None or match[2]:
    return None
  axes = {
    name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])
  }
  names = re.findall(r"'(\w+)'", match[3])
  if math.prod(axes.values()) != num_devices or ':(' in match[3]:
    return None
  ids = np.arange(num_devices).reshape(list(axes.values()))
  dims = [list(axes).index(name) for name in names]
  ids = np.moveaxis(ids, dims, range(-len(dims), 0))
  return ids.reshape(-1, math.prod(axes[name] for name in names))


def _listed(text: str) -> np.ndarray | None:
  groups = [_numbers(group) for group in re.findall(r'\{([\d,]*)\}', text)]
  if len({len(group) for group in groups}) != 1:
    return None
  return np.array(groups)


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(',') if number]
