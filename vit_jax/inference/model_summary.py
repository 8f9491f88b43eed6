"""Layers of a model, its multiply-adds and activation memory, by tracing alone.

Only shapes are traced: the largest model takes seconds and no memory.
"""

import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax

from vit_jax import trees
from vit_jax.reporting import flops


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer that has parameters, or several that are alike."""

  name: str  # As in the parameters' names; `*` for the numbers of repeats.
  repeats: int
  # For one image, [1, ...]; None for bare parameters, such as a class token.
  output: tuple[int, ...] | None
  shapes: dict[str, tuple[int, ...]]  # Of one of them, by their last names.
  num_params: int  # Of all repeats.


def abstract_params(
  module: nn.Module, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
  """Returns the parameters of a model as `jax.ShapeDtypeStruct`.

  Args:
    module: takes `[B, H, W, C]` float32.
    image_shape: (height, width, channels).
  """
  return _trace(module, image_shape)[0]


def layers(module: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
  """Returns the layers in the order in which an image meets them.

  Layers whose names differ in numbers and that are alike otherwise are one
  entry: the blocks of an encoder appear once.
  """
  params, outputs = _trace(module, image_shape)
  shapes: dict[str, dict[str, tuple[int, ...]]] = {}
  for name, leaf in trees.flatten(params).items():
    folder, _, last = name.rpartition('/')
    shapes.setdefault(folder, {})[last] = leaf.shape
  parents = {path.rpartition('/')[0] for path in outputs if path}
  found = []
  for path, output in outputs.items():
    own = shapes.get(path, {})
    if path in parents:  # Parameters beside layers: a class token.
      prefix = f'{path}/' if path else ''
      found += [(prefix + last, None, {last: own[last]}) for last in own]
    elif own:
      found.append((path, output, own))
  groups: dict[Any, list[str]] = {}
  for name, output, own in found:
    pattern = re.sub(r'(?<=_)\d+(?=/|$)', '*', name)
    groups.setdefault((pattern, output, tuple(own.items())), []).append(name)
  return [
    Layer(
      name=pattern if len(names) > 1 else names[0],
      repeats=len(names),
      output=output,
      shapes=dict(own),
      num_params=len(names) * sum(math.prod(shape) for _, shape in own),
    )
    for (pattern, output, own), names in groups.items()
  ]


def macs(module: nn.Module, image_shape: tuple[int, int, int]) -> int:
  """Returns the multiply-adds of matrix products and convolutions of an image.

  That is what timm and DeiT call GMACs or FLOPs, and half of `flops.count`.
  """
  params = abstract_params(module, image_shape)
  image = jax.ShapeDtypeStruct((1, *image_shape), 'float32')
  return flops.count(lambda *args: _answer(module, *args), params, image) // 2


def activation_bytes(
  module: nn.Module, image_shape: tuple[int, int, int]
) -> int:
  """Returns the bytes kept for the backward pass, for each image of a batch.

  They are the residuals of automatic differentiation, `remat` included, that
  grow with the batch. The compiler may keep less, as it recomputes what is
  cheap, and needs working space besides.
  """
  params = abstract_params(module, image_shape)

  def kept(params, image, key):
    rngs = {'dropout': key}
    _, pullback = jax.vjp(
      lambda p: _answer(module, p, image, train=True, rngs=rngs), params
    )
    leaves = jax.tree.leaves(pullback)
    return list({id(leaf): leaf for leaf in leaves}.values())

  def num_bytes(batch_size):
    image = jax.ShapeDtypeStruct((batch_size, *image_shape), 'float32')
    key = jax.eval_shape(jax.random.key, 0)
    return bytes_of(jax.eval_shape(kept, params, image, key))

  return num_bytes(2) - num_bytes(1)


def bytes_of(tree: Any) -> int:
  """Returns the bytes of all arrays of a tree together."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _trace(module, image_shape):
  """Returns abstract parameters and `{path: output shape}` in order of call."""
  outputs: dict[str, tuple[int, ...] | None] = {}

  def record(method, args, kwargs, context):
    if context.method_name != '__call__':
      return method(*args, **kwargs)
    path = '/'.join(context.module.path)
    outputs.setdefault(path, None)  # Now: parents precede their children.
    result = method(*args, **kwargs)
    outputs[path] = outputs[path] or getattr(result, 'shape', None)
    return result

  image = jax.ShapeDtypeStruct((1, *image_shape), 'float32')
  with nn.intercept_methods(record):
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
  return variables['params'], outputs


def _answer(module, params, image, **options) -> jax.Array:
  outputs = module.apply({'params': params}, image, **options)
  return outputs['logits' if 'logits' in outputs else 'features']
