"""Time of a step, estimated from the text of a program compiled for TPUs.

The compiler writes the cycles that it expects of each fusion into the optimised
program. Summed over the program, loops as often as they run, and divided by the
clock they estimate the time of a step that never waits for other chips. It is
no bound: the cost model is several times too high for some small products.
Kernels written by hand (Pallas) carry no such number; theirs is the count of
scheduled instructions, without the cycles in which a result is waited for.
"""

import collections
import dataclasses
import glob
import math
import os
import re
from collections.abc import Iterator, Mapping

from vit_jax.compiler import collectives as collectives_lib

PHASES = ('forward', 'backward', 'optimizer', 'other')

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r'(?:to_apply|calls)=%?([\w.\-]+)')
_NAME = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = ')
_COMPUTATION = re.compile(
  r'^(ENTRY )?%?([\w.\-]+) \([^\n]*\{\s*?\n(.*?)^\}', re.DOTALL | re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A kernel that is written by hand, and how often a step runs it.

  Attributes:
    name: of the instruction in the program.
    calls: in a step.
    iterations: of its grid, in a call; None if not known.
    bundles: instructions that the compiler scheduled for it, one a cycle; None
      without its schedule.
    bytes: of its arguments and results outside the chip's fast memory, in a
      call.
    phase: of PHASES.
  """

  name: str
  calls: int
  iterations: int | None
  bundles: int | None
  bytes: int
  phase: str

  def seconds(self, clock_hz: float, hbm_bytes_per_second: float) -> float:
    """Returns the most that the calls of a step take, nan if not known.

    Every iteration is given all bundles, the ones before and after the loop
    too; kernels without loops of their own take no more cycles than that. What
    is copied in and out at the same time must not take longer; the first copy
    in and the last one out are waited for.
    """
    if self.bundles is None or self.iterations is None:
      return math.nan
    compute = self.iterations * self.bundles / clock_hz
    copies = self.bytes / hbm_bytes_per_second
    return self.calls * (max(compute, copies) + copies / self.iterations)


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Of one step on one device.

  Attributes:
    cycles: by phase, without kernels.
    kernels: that the program calls.
    collectives: see `collectives`.
    unknown_loops: loops whose length is not in the text, counted as one turn.
    products: fusions with matrix products, and how many of them have cycles:
      where they differ, time is missing.
  """

  cycles: dict[str, int]
  kernels: tuple[Kernel, ...]
  collectives: tuple[collectives_lib.Collective, ...]
  unknown_loops: int
  products: tuple[int, int]

  def seconds(
    self, clock_hz: float, hbm_bytes_per_second: float
  ) -> dict[str, float]:
    """Returns the time by phase, kernels included."""
    out = {phase: self.cycles[phase] / clock_hz for phase in PHASES}
    for kernel in self.kernels:
      out[kernel.phase] += kernel.seconds(clock_hz, hbm_bytes_per_second)
    return out


def read(
  text: str,
  mesh_shape: Mapping[str, int],
  *,
  grids: Mapping[str, int] | None = None,
  schedules: str | None = None,
) -> Estimate:
  """Returns the estimate of a compiled program.

  Args:
    text: of the program, `compiled.as_text()`.
    mesh_shape: axes of the mesh and their sizes, in its order.
    grids: how often the grid of a kernel has it run, by the kernel's name; what
      is not among them has no time.
    schedules: a folder into which libtpu wrote its schedules of kernels.
  """
  computations, entry = _computations(text)
  cycles = dict.fromkeys(PHASES, 0)
  kernels: collections.Counter[str] = collections.Counter()
  collectives: collections.Counter = collections.Counter()
  unknown: set[str] = set()
  products = [0, 0]
  with_products = {
    name
    for name, lines in computations.items()
    if any(re.search(r' (convolution|dot)\(', line) for line in lines)
  }
  for line, times in _executed(computations, entry, unknown):
    found = collectives_lib.parse(line, mesh_shape)
    if found is not None:
      collectives[found] += times
    if '"tpu_custom_call"' in line:
      kernels[line] += times
      continue
    match = _CYCLES.search(line)
    if match:
      cycles[_phase(line)] += times * int(match[1])
    if ' fusion(' in line and with_products & set(_CALLED.findall(line)):
      products[0] += 1
      products[1] += bool(match)
  return Estimate(
    cycles=cycles,
    kernels=_kernels(kernels, grids or {}, schedules),
    collectives=collectives_lib.merge(collectives),
    unknown_loops=len(unknown),
    products=tuple(products),
  )


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Returns the lines of each computation, and the name of the entry."""
  found = _COMPUTATION.findall(text)
  entry = next((name for is_entry, name, _ in found if is_entry), '')
  return {name: lines.splitlines() for _, name, lines in found}, entry


def _executed(
  computations: dict[str, list[str]], entry: str, unknown: set[str]
) -> Iterator[tuple[str, int]]:
  """Yields each instruction that runs, and how often it does.

  What is inside a fusion that has cycles is part of them; of it only
  collectives are yielded.
  """
  todo = [(entry, 1, False)]
  while todo:
    name, times, inside = todo.pop()
    for line in computations.get(name, ()):
      if ' while(' in line:
        turns = _turns(line, computations)
        if turns is None:
          unknown.add(line)
        body = re.search(r'body=%?([\w.\-]+)', line)[1]
        todo.append((body, times * (turns or 1), inside))
        continue
      if not inside or collectives_lib.is_one(line):
        yield line, times
      if ' conditional(' in line:
        for branch in _branches(line):
          todo.append((branch, times, inside))
      elif re.search(r' (fusion|call|async-start)\(', line):
        counted = inside or _CYCLES.search(line) is not None
        for called in _CALLED.findall(line):
          todo.append((called, times, counted))


def _turns(line: str, computations: dict[str, list[str]]) -> int | None:
  """Returns how often a loop runs, None if the text does not say."""
  if known := re.search(r'known_trip_count[^0-9]*(\d+)', line):
    return int(known[1])
  condition = re.search(r'condition=%?([\w.\-]+)', line)[1]
  bounds = [
    int(number)
    for part in computations.get(condition, ())
    for number in re.findall(r's32\[\][^=]*? constant\((\d+)\)', part)
  ]
  return max(bounds, default=None)


def _branches(line: str) -> list[str]:
  if listed := re.search(r'branch_computations=\{([^}]*)\}', line):
    return re.findall(r'%?([\w.\-]+)', listed[1])
  return re.findall(r'(?:true|false)_computation=%?([\w.\-]+)', line)


def _phase(line: str) -> str:
  """The phase by the name that JAX gave the operation."""
  found = _OP_NAME.search(line)
  name = found[1] if found else ''
  if 'transpose(' in name or 'rematted_computation' in name:
    return 'backward'
  if 'jvp(' in name:
    return 'forward'
  return 'optimizer' if 'optimizer/' in name else 'other'


def _kernels(
  found: Mapping[str, int], grids: Mapping[str, int], schedules: str | None
) -> tuple[Kernel, ...]:
  """Returns the kernels of the lines, equal ones together.

  The compiler makes a schedule for one of them.
  """
  calls_of: collections.Counter[tuple[str, ...]] = collections.Counter()
  bundles_of: dict[tuple[str, str], int] = {}
  for line, calls in found.items():
    name = _NAME.match(line)[1]
    base = name.partition('.')[0]
    body = re.search(r'"body":"([^"]*)"', line)
    code = body[1] if body else name
    calls_of[base, code, _phase(line), _shapes(line)] += calls
    bundles = _bundles(name, schedules)
    if bundles is not None:
      bundles_of[base, code] = max(bundles, bundles_of.get((base, code), 0))
  return tuple(
    Kernel(
      name=base,
      calls=calls,
      iterations=_iterations(base, grids),
      bundles=bundles_of.get((base, code)),
      # All arguments and results count, wherever they are.
      bytes=collectives_lib.num_bytes(shapes),
      phase=phase,
    )
    for (base, code, phase, shapes), calls in calls_of.items()
  )


def _iterations(base: str, grids: Mapping[str, int]) -> int | None:
  """Returns those of a kernel; `jvp_attention_forward_` may be its name."""
  names = [name for name in grids if name in base]
  return grids[max(names, key=len)] if names else None


def _bundles(name: str, schedules: str | None) -> int | None:
  """Returns the length of a kernel's schedule, None if there is no file."""
  if schedules is None:
    return None
  pattern = f'*-{glob.escape(name)}-*schedule-analysis_final_bundles.txt'
  files = glob.glob(os.path.join(glob.escape(schedules), pattern))
  if not files:
    return None
  with open(max(files, key=os.path.getmtime)) as f:
    head = re.search(r'total scheduled bundles:\s*(\d+)', f.read(4096))
  return int(head[1]) if head else None


def _shapes(line: str) -> str:
  """Returns the part of a call that has the shapes of results and arguments."""
  results = line.partition(' = ')[2].partition(' custom-call(')[0]
  # Arguments have no shape in the text but that of their demanded layouts.
  layouts = re.search(r'operand_layout_constraints=\{(.*?\})\}', line)
  return results + (layouts[1] if layouts else '')
