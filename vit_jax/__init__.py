"""vit_jax: Vision Transformers in JAX, from pre-training to shipping."""

from typing import Any

__version__ = '0.1.0'


def __getattr__(name: str) -> Any:
  # `import vit_jax` is to cost nothing; `vit_jax.load` needs JAX.
  if name == 'load':
    import importlib

    return importlib.import_module('vit_jax.inference.model').load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return [*globals(), 'load']
