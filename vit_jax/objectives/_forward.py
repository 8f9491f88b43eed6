"""A model's forward pass: compiled, with intermediate values, and pure."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

Batch = Mapping[str, jax.Array]


class Forward:
  """Forward pass for evaluators and pictures: `forward(params, batch)`.

      batch = forward.prepare(batch)  # float images
      outputs = forward.function(params, batch)
      gradient = jax.grad(
        lambda image: forward.function(
          params, {**batch, 'image': image}
        )['logits'].max()
      )(batch['image'])
      outputs, found = forward.apply(params, batch)
      found['encoder/block_11/attention/attention_weights']  # [B, N, L, L]

  All of it may be traced by `jax.jit`, `jax.grad` and the like. Equal only to
  itself, so that it can be a static argument of `jax.jit`.

  Attributes:
    function: `function(params, batch) -> outputs`, pure, after the device ops.
  """

  def __init__(
    self,
    function: Callable[[Any, Batch], dict[str, jax.Array]],
    device_ops: Callable[[Batch], Batch],
    *,
    context: Callable[[], Any] = contextlib.nullcontext,
  ):
    """Compiles nothing yet.

    Args:
      function: of the objective or the model.
      device_ops: `batch -> batch` as the model takes it, without randomness.
      context: makes a context manager in which both are traced, such as that
        of the mesh of the activations.
    """

    def in_context(function):
      @functools.wraps(function)
      def wrapped(*args):
        with context():
          return function(*args)

      return wrapped

    def predict(params, batch):
      return function(params, device_ops(batch))

    self.function = in_context(function)
    self._device_ops = in_context(device_ops)
    self._jitted = jax.jit(in_context(predict))

  def __call__(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
    """Returns the outputs for a batch of the input, jitted."""
    return self._jitted(params, batch)

  def lower(self, params: Any, batch: Batch) -> Any:
    """Returns the lowered program, as `jax.jit(...).lower` does."""
    return self._jitted.lower(params, batch)

  def prepare(self, batch: Batch) -> dict[str, jax.Array]:
    """Returns a batch of the input after the device ops (normalize)."""
    return dict(self._device_ops(batch))

  def apply(
    self,
    params: Any,
    batch: Batch,
    *,
    capture: str | Sequence[str] = (),
    add: Mapping[str, jax.Array] | None = None,
  ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Returns the outputs and intermediate values by name.

    These are whatever modules sow into the collection 'intermediates', named
    `<path of the module>/<name>`, and the outputs of the modules that `capture`
    names, under their paths. With `scan` blocks are one module `blocks` whose
    values are stacked along axis 0.

    Args:
      params: of the model.
      batch: after `prepare`.
      capture: regular expressions (or one) for whole paths of modules, as in
        'encoder/block_03'.
      add: arrays to add to the outputs of modules by their paths: the gradient
        with respect to an array of zeros is the gradient with respect to the
        output, such as the tokens after a block.
    """
    patterns = (capture,) if isinstance(capture, str) else tuple(capture)
    with _recording(patterns, dict(add or {})) as found:
      outputs = self.function(params, batch)
    return outputs, found


@contextlib.contextmanager
def _recording(
  patterns: Sequence[str], add: dict[str, jax.Array]
) -> Iterator[dict[str, Any]]:
  """Yields a dict that fills up while flax modules are applied."""
  found: dict[str, Any] = {}
  inside = False

  def is_captured(module: nn.Module, method: str) -> bool:
    path = '/'.join(module.path)
    return method == '__call__' and any(
      re.fullmatch(pattern, path) for pattern in patterns
    )

  def intercept(next_function, args, kwargs, context):
    nonlocal inside
    module, path = context.module, '/'.join(context.module.path)
    if not inside and not module.path and module.scope is not None:
      # The root of a tree of modules: apply it once more, where the collection
      # is mutable. Who called it need not know.
      inside = True
      try:
        unbound, variables = module.unbind()
        outputs, state = unbound.apply(
          variables,
          *args,
          method=context.method_name,
          mutable=['intermediates'],
          capture_intermediates=is_captured if patterns else False,
          **kwargs,
        )
      finally:
        inside = False
      sown = traverse_util.flatten_dict(state.get('intermediates', {}), sep='/')
      for name, values in sown.items():  # Tuples: a module may sow repeatedly.
        value = values[0] if len(values) == 1 else values
        found[name.removesuffix('/__call__')] = value
      return outputs
    output = next_function(*args, **kwargs)
    if path in add and context.method_name == '__call__':
      output = output + add[path]
    return output

  with nn.intercept_methods(intercept):
    yield found
