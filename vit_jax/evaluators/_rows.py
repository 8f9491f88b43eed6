"""A function of a model's outputs for every example of a split, on the host."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.data import pipeline
from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib

_log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Rows:
  """A split whose examples count exactly once each, in order.

  Args:
    batch_size: global batch; rounded up to a multiple of the devices that share
      a batch. It does not change the result.
    name: of the split in messages; None is the data section.
    Others: see `pipeline.EvalInput`.

  Attributes:
    input: the `pipeline.EvalInput`.
    num_skipped: after a `map`, how many examples could not be read; None
      unless on_error='skip'.

  Raises:
    UserError: an option or the data.
  """

  mesh: jax.sharding.Mesh
  _: dataclasses.KW_ONLY
  data: Mapping[str, Any]
  ops: str
  batch_size: int
  on_error: str = 'stop'
  num_threads: int | None = None
  name: str | None = None

  def __post_init__(self):
    self.input = pipeline.EvalInput(
      data=self.data,
      ops=self.ops,
      batch_size=mesh_lib.padded(self.batch_size, self.mesh),
      on_error=self.on_error,
      num_threads=self.num_threads,
      sharding=mesh_lib.batch_sharding(self.mesh),
    )
    self.num_skipped: int | None = None

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
    split = mesh_lib.batch_sharding(self.mesh)
    batches = pipeline.prefetch_to_device(iter(self.input), split)
    results = (
      call(function, params, batch, self.mesh, **options) for batch in batches
    )
    num_read = 0
    for rows in fetch_one_behind(results):
      mask = rows.pop('mask')
      num_read += int(mask.sum())
      yield {key: value[mask] for key, value in rows.items()}
    if self.on_error == 'skip':
      self.num_skipped = self.input.num_examples - num_read
    if self.input.skipped:
      _log.warning(
        'skipped %d examples of %s that cannot be read, among them:\n  %s',
        self.input.skipped,
        dict(self.data) if self.name is None else self.name,
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


def logits_of(outputs: Mapping[str, jax.Array]) -> jax.Array:
  """Returns the logits, float32 `[B, Y]`.

  Raises:
    UserError: outputs without logits.
  """
  if 'logits' not in outputs:
    raise UserError(
      f"the outputs {sorted(outputs)} have no 'logits': set model.num_classes, "
      "return them from the objective's predict, or evaluate the features (knn,"
      ' linear_probe)'
    )
  return outputs['logits'].astype(np.float32)


def fetch_one_behind(results: Iterable[Any]) -> Iterator[Any]:
  """Yields each result on the host, after the next one was dispatched."""
  waiting = []
  for current in results:
    yield from map(jax.device_get, waiting)
    waiting = [current]
  yield from map(jax.device_get, waiting)


@functools.partial(
  jax.jit, static_argnames=('function', 'options', 'out_sharding')
)
def _call(params, batch, *, function, options, out_sharding):
  rows = dict(function(params, batch, **dict(options)), mask=batch['mask'])
  return jax.lax.with_sharding_constraint(rows, out_sharding)
