"""Workaround for torchvision: import it where its wheel does not fit torch's.

PyPI's torchvision is built for CUDA. Beside a torch for CPU it lacks operators
that it declares shapes for while it is imported, and fails; timm and, where
torchvision is installed, transformers then fail too. Nothing that we use needs
the operators. This can go when both wheels come from one index.
"""

import importlib.util

_OPERATORS = ('nms', 'qnms')


def fix() -> None:
  """Declares the missing operators, if torchvision is there and needs them."""
  if not importlib.util.find_spec('torchvision'):
    return
  import torch

  try:
    import torchvision  # noqa: F401
  except RuntimeError as e:
    if 'torchvision::' not in str(e):
      raise
    library = torch.library.Library('torchvision', 'DEF')
    for name in _OPERATORS:
      library.define(
        f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
      )
    _KEPT.append(library)  # The operators go when it does.


_KEPT: list = []
