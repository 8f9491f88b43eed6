"""A function of a model's outputs for every example of a split, on the host."""

import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.data import pipeline
from vit_jax.parallel import mesh as mesh_lib

_log = logging.getLogger(__name__)


class Rows:
  """A split whose examples count exactly once each, in order.

  Attributes:
    input: the `pipeline.EvalInput`.
    num_skipped: after a `map`, how many examples could not be read; None
      unless on_error='skip'.
  """

  def __init__(
    self,
    mesh: jax.sharding.Mesh,
    *,
    data: Mapping[str, Any],
    ops: str,
    batch_size: int,
    on_error: str = 'stop',
    num_threads: int | None = None,
    name: str | None = None,
  ):
    """Opens the data; see `pipeline.EvalInput`.

    Args:
      batch_size: global batch; rounded up to a multiple of the devices that
        share a batch. It does not change the result.
      name: of the split in messages; None is the data section.

    Raises:
      UserError: an option or the data.
    """
    self.input = pipeline.EvalInput(
      data=data,
      ops=ops,
      batch_size=padded(batch_size, mesh),
      on_error=on_error,
      num_threads=num_threads,
      sharding=mesh_lib.batch_sharding(mesh),
    )
    self.num_skipped: int | None = None
    self._mesh, self._skips = mesh, on_error == 'skip'
    self._name = dict(data) if name is None else name

  def map(
    self, function: Callable[..., Mapping[str, Any]], params: Any, **options
  ) -> Iterator[dict[str, np.ndarray]]:
    """Yields what the function returns for the examples of each batch.

    Padding and examples that could not be read are left out; the latter are
    counted and named in the log. Every process gets all rows.

    Args:
      function: `function(params, batch, **options) -> {name: [B, ...]}`. It is
        jitted with the model in one program, so that outputs that it does not
        use are not computed; calls with equal functions and options share the
        compiled program.
      params: of the model, on the devices.
      **options: static, hashable.
    """
    split = mesh_lib.batch_sharding(self._mesh)
    batches = pipeline.prefetch_to_device(iter(self.input), split)
    results = (
      call(function, params, batch, self._mesh, **options) for batch in batches
    )
    num_read = 0
    for rows in fetch_one_behind(results):
      mask = rows.pop('mask')
      num_read += int(mask.sum())
      yield {key: value[mask] for key, value in rows.items()}
    if self._skips:
      self.num_skipped = self.input.num_examples - num_read
    if self.input.skipped:
      _log.warning(
        'skipped %d examples of %s that cannot be read, among them:\n  %s',
        self.input.skipped,
        self._name,
        '\n  '.join(self.input.skipped_names),
      )


def call(
  function: Callable[..., Mapping[str, Any]],
  params: Any,
  batch: Mapping[str, jax.Array],
  mesh: jax.sharding.Mesh,
  **options,
) -> dict[str, jax.Array]:
  """Returns `function(params, batch, **options)` and `mask`, replicated."""
  return _call(
    params,
    batch,
    function=function,
    options=tuple(sorted(options.items())),
    out_sharding=mesh_lib.replicated(mesh),
  )


def padded(num_rows: int, mesh: jax.sharding.Mesh) -> int:
  """Returns the next multiple of the devices that share a batch."""
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  return math.ceil(num_rows / parts) * parts


def fetch_one_behind(results: Iterable[Any]) -> Iterator[Any]:
  """Yields each result on the host, after the next one was dispatched."""
  waiting = None
  for current in results:
    if waiting is not None:
      yield jax.device_get(waiting)
    waiting = current
  if waiting is not None:
    yield jax.device_get(waiting)


@functools.partial(
  jax.jit, static_argnames=('function', 'options', 'out_sharding')
)
def _call(params, batch, *, function, options, out_sharding):
  rows = dict(function(params, batch, **dict(options)), mask=batch['mask'])
  return jax.lax.with_sharding_constraint(rows, out_sharding)
