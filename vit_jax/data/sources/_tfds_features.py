"""A guard against imports of modules named in the files of a TFDS dataset."""

import contextlib
from collections.abc import Iterator

from vit_jax.errors import UserError


@contextlib.contextmanager
def no_imports() -> Iterator[None]:
  """Within it, files of a dataset may name loaded classes of features only.

  TFDS (4.9) imports the module of every class that `features.json` names. A
  dataset from somebody else is data, and nothing in it is imported.

  Raises:
    UserError: a file names a class that no imported module defines.
  """
  from tensorflow_datasets.core.features import feature

  connector = feature.FeatureConnector
  original = connector.__dict__['cls_from_name']

  def registered_class(cls, python_class_name):
    if python_class_name not in cls._registered_features:
      raise UserError(
        f'the dataset names the class {python_class_name!r} for a feature, and '
        'nothing that its files name is imported. If you trust it, import that '
        'module in a source of your own'
      )
    return original.__func__(cls, python_class_name)

  connector.cls_from_name = classmethod(registered_class)
  try:
    yield
  finally:
    connector.cls_from_name = original
