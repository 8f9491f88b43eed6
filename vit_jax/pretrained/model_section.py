"""Model sections: checked against their parameters, changed by the user."""

import importlib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.pretrained.weights import Weights, build_model, check_model_name
from vit_jax.printable import printable

_FOLDER = 'pretrained/names'


def all_names() -> list[types.ModuleType]:
  """Returns the files of `names/`: one for each model that others name too."""
  return list(map(names_named, lookup.names(_FOLDER)))


def names_named(name: str) -> types.ModuleType:
  """Returns a file of `names/`, such as 'vit'."""
  return importlib.import_module(f'vit_jax.pretrained.names.{name}')


def detect(code_base: str, arrays: Mapping[str, Any]) -> tuple | None:
  """Returns the file of `names/` that knows the names of arrays, and how.

  How is what `detect` of its dialects of a code base ('google' or 'torch')
  returns; None if no file knows the names.
  """
  for names in all_names():
    dialects = getattr(names, code_base, None)
    if dialects and (found := dialects.detect(arrays)):
      return names, found
  return None


def names_of(model: Any) -> types.ModuleType | None:
  """Returns the file of `names/` for a model, by its class; None without."""
  return next((n for n in all_names() if isinstance(model, n.Model)), None)


def to_write(weights: Weights, code_base: str) -> tuple[types.ModuleType, Any]:
  """Returns the file of `names/` for weights, and the model they are for.

  Raises:
    UserError: a model that has no names in a code base: 'google', 'timm' or
      'huggingface'.
  """
  model = build_model(weights)
  names = names_of(model)
  if not hasattr(names, code_base):
    known = lookup.names(_FOLDER)
    known = [n for n in known if hasattr(names_named(n), code_base)]
    raise UserError(
      f'files of {code_base} can be written for {", ".join(known)} of models/;'
      f' got {weights.model}. Write .safetensors'
    )
  return names, model


def trusted_keys(given: Mapping[str, Any] | None) -> frozenset[str]:
  """Returns `Weights.trusted` for keys of the model section from the user."""
  given = given or {}
  return frozenset({'model'} if 'name' in given or _code(given) else ())


def override(
  named: Mapping[str, np.ndarray],
  section: Mapping[str, Any],
  given: Mapping[str, Any] | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns parameters and model section with the keys of `given`, which win.

  Where `given` names a variant or another model, the sizes in `section` give
  way. `num_classes=None` drops the head; for another pooling see `pooled` of
  `names/vit.py`.

  Raises:
    UserError: a section without a name, or one that names code outside this
      package, such as a stem, where the user does not.
  """
  named, given, kept = dict(named), dict(given or {}), dict(section)
  if 'name' not in section:
    raise UserError(f'the model section has no name: {section}')
  code = {k: v for k, v in _code(section).items() if k not in given}
  if not trusted_keys(given):
    code.pop('name', None)  # An error where it would be imported.
  if code:
    raise UserError(
      f'the file names {", ".join(code.values())} as code of its model, and'
      ' nothing that a file names is imported. If you trust that module, name'
      f' it yourself: model={code!r} (on the command line --model)'
    )
  if given.get('name', section['name']) != section['name']:
    kept = {}
  elif 'variant' in given:
    sizes = ('variant', *lookup.model_fields(section, 'size'))
    kept = {key: value for key, value in kept.items() if key not in sizes}
  if 'num_classes' in given and given['num_classes'] is None:
    named = {k: v for k, v in named.items() if not k.startswith('head/')}
  section = kept | given
  if 'pooling' in given and section['name'] in lookup.names(_FOLDER):
    named = names_named(section['name']).pooled(named, given['pooling'])
  return named, section


def check(
  named: Mapping[str, np.ndarray],
  section: Mapping[str, Any],
  *,
  trusted: bool,
) -> None:
  """Raises UserError unless arrays are those of a section from a file of ours.

  Models without a file in `names/` are not checked.
  """
  if section.get('name') in lookup.names(_FOLDER):
    if lines := problems(named, section, trusted=trusted):
      raise UserError(
        'it does not hold exactly the parameters of its model:' + listed(lines)
      )


def problems(
  named: Mapping[str, np.ndarray],
  section: Mapping[str, Any],
  *,
  labels: Mapping[str, str] | None = None,
  trusted: bool = False,
) -> list[str]:
  """Returns how arrays differ from the model of a section: a line for each.

  The section's parameters are those for the grid of the position table in
  `named`. `labels` are the names of the file, for the lines.

  A section may come from a file: sizes that no array has are refused before
  anything is built from them.

  Raises:
    UserError: a section that no model can be built from, or that names code
      outside this package and is not trusted.
  """
  labels = labels or {}
  check_model_name(section, trusted=trusted)
  try:
    model = lookup.build('models', section, 'Model', trusted=trusted)
    names = names_of(model)
    if names is None:
      raise UserError(
        f'parameters are known for {lookup.names(_FOLDER)} of models/; got'
        f' {section}'
      )
    expected, more = names.expected(named, model)
  except (TypeError, ArithmeticError) as e:
    reason = printable(e, max_length=200)
    raise UserError(f'no ViT can be built from {section}: {reason}') from e
  if not expected:
    return more

  def name(ours):
    found = printable(ours, max_length=200)
    return f'{labels[ours]} (our {found})' if ours in labels else found

  lines = [f'missing: {name(n)}' for n in expected if n not in named]
  lines += more
  for ours, array in named.items():
    if ours not in expected:
      lines.append(f'unexpected: {name(ours)} {array.shape}')
    elif array.shape != expected[ours]:
      lines.append(
        f'{name(ours)}: expected {expected[ours]} in our layout, got'
        f' {array.shape}'
      )
    elif not jnp.issubdtype(array.dtype, jnp.floating):
      lines.append(f'{name(ours)}: expected floats, got {array.dtype}')
  return lines


def listed(lines: Sequence[str], *, max_lines: int = 50) -> str:
  """Returns problems as the indented lines of a message, if many the first."""
  more = len(lines) - max_lines
  shown = [printable(line, max_length=500) for line in lines[:max_lines]]
  shown += [f'and {more:,} more'] * (more > 0)
  return ''.join(f'\n  {line}' for line in shown)


def patch_size(named: Mapping[str, Any]) -> tuple[int, int] | None:
  """Returns height and width of a patch, or None without a kernel."""
  kernel = named.get('patch_embedding/kernel')
  if np.ndim(kernel) == 4:
    return kernel.shape[:2]
  convolution = re.compile(r'patch_embedding/convolution_\d+/kernel')
  halvings = sum(bool(convolution.fullmatch(name)) for name in named)
  return (2**halvings, 2**halvings) if halvings else None


def image_size(named: Mapping[str, Any]) -> tuple[int, int] | None:
  """Returns (height, width) that the position table is for, or None."""
  table, patch = named.get('position_embedding'), patch_size(named)
  if patch is None or np.ndim(table) != 3:
    return None
  return table.shape[0] * patch[0], table.shape[1] * patch[1]


def num_channels(named: Mapping[str, Any]) -> int | None:
  """Returns the number of channels of images, or None without a kernel."""
  for name in ('', 'convolution_0/'):
    kernel = named.get(f'patch_embedding/{name}kernel')
    if np.ndim(kernel) == 4:
      return kernel.shape[2]
  return None


def depth(named: Mapping[str, Any]) -> int:
  """Returns the number of blocks, counting any that are left out."""
  numbers = [re.match(r'encoder/block_(\d{1,3})/', name) for name in named]
  return max((int(match[1]) for match in numbers if match), default=-1) + 1


def _code(section: Mapping[str, Any]) -> dict[str, str]:
  """Returns the keys of a model section that name a module of the user's."""
  dotted = re.compile(r'\w+(\.\w+)+')
  return {
    key: value
    for key, value in section.items()
    if isinstance(value, str) and dotted.fullmatch(value)
  }
