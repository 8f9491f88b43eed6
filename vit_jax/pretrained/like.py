"""Model sections with `like`, replaced by the model of some weights."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax import lookup
from vit_jax.data import device_ops_language
from vit_jax.errors import UserError
from vit_jax.pretrained import catalog
from vit_jax.pretrained.weights import check_model_name

_NORMALIZE = 'normalize(-1, 1)'  # Where the weights do not say it.


def complete(
  config: Mapping[str, Any], *, on_log: Callable[[str], Any] = print
) -> dict[str, Any]:
  """Returns the config with `config.model.like` replaced by what it means.

  `like` is whatever `catalog.load` takes. The model section becomes that of the
  weights, in which the section's other keys win; an input section without
  `device_ops` gets the normalisation of the weights. A config without `like` is
  returned as it is.

  Raises:
    UserError: `like` is neither text nor a path, or the weights cannot be read
      or name code outside this package.
  """
  config = dict(config)
  model = config.get('model')
  if not isinstance(model, lookup.SECTION) or 'like' not in model:
    return config
  keys = dict(model)
  source = keys.pop('like')
  if not isinstance(source, str | pathlib.Path):
    raise UserError(
      f'config.model.like={source!r} is not text. Give the path or the name of'
      ' weights'
    )
  try:
    weights = catalog.load(source, on_log=on_log)
  except UserError as e:
    raise UserError(f'config.model.like={source!r}: {e}') from e
  # A config is trusted, and what a file says becomes a part of it here.
  check_model_name(weights.model, trusted='name' in keys)
  config['model'] = dict(weights.model) | keys
  section = dict(config.get('input') or {})
  if 'device_ops' not in section:
    text = weights.preprocess.get('device_ops', _NORMALIZE)
    device_ops_language.parse(text)  # Not trusted: refuses foreign ops.
    section['device_ops'] = text
    config['input'] = section
  return config
