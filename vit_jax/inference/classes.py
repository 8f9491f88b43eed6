"""Names and probabilities of classes, from logits."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.data import labels
from vit_jax.errors import UserError
from vit_jax.pretrained.weights import Weights

# A line for each of the 1,000 classes of ILSVRC 2012, in their order: of each
# WordNet synset the first lemma, sorted by synset, as in every code base. Two
# cranes and two swimsuits that share theirs have distinct names.
_IMAGENET = pathlib.Path(__file__).with_name('imagenet_names.txt')

LOSSES = ('softmax', 'sigmoid')


class Prediction(NamedTuple):
  """One of the answers to an image.

  Attributes:
    name: of the class; its number where the classes have no names.
    probability: of this class: 0 to 1. With 'softmax' those of all classes sum
      to one; with 'sigmoid' each class has its own.
    label: the number of the class.
  """

  name: str
  probability: float
  label: int


def best(
  logits_Y: np.ndarray,
  *,
  loss: str,
  class_names: Sequence[str] | None,
  top_k: int,
) -> list[Prediction]:
  """Returns the `top_k` likeliest classes, or all if fewer, the best first."""
  if not isinstance(top_k, int) or top_k < 1:
    raise UserError(f'top_k is at least 1; got {top_k!r}')
  if loss == 'softmax':
    # Less the largest, so that none overflows.
    exp_Y = np.exp(np.float64(logits_Y) - logits_Y.max())
    probability_Y = exp_Y / exp_Y.sum()
  else:
    probability_Y = 0.5 * (1 + np.tanh(0.5 * np.float64(logits_Y)))
  # Logits order better than probabilities, which saturate at 1.
  order = np.argsort(-logits_Y, kind='stable')[:top_k].tolist()
  return [
    Prediction(
      name=str(i) if class_names is None else class_names[i],
      probability=float(probability_Y[i]),
      label=i,
    )
    for i in order
  ]


def loss_of(weights: Weights, given: str | None) -> str:
  """Returns the loss that a head was trained with, 'softmax' if none is known.

  Args:
    weights: of a run, or saved from one, they have `source['loss']`.
    given: what the user says, which wins.
  """
  if given is not None:
    if given not in LOSSES:
      raise UserError(f'loss is one of {", ".join(LOSSES)}; got {given!r}')
    return given
  if 'loss' in weights.source:
    return weights.source['loss']
  # Of the published heads, a sigmoid for each class learned: those of
  # ImageNet-21k (github.com/google-research/vision_transformer/issues/34), and
  # those that DeiT III trained on ImageNet-1k alone (its README, --bce-loss).
  name = weights.source.get('name', '')
  sigmoid = name and (
    weights.model.get('num_classes') == 21843
    or re.fullmatch(r'deit3-.*-1k|timm/deit3_.*\.fb_in1k', name)
  )
  return 'sigmoid' if sigmoid else 'softmax'


def names_of(
  weights: Weights, given: str | os.PathLike | Sequence[str] | None
) -> list[str] | None:
  """Returns the names of the classes, or None if they are unknown.

  Args:
    weights: that may have names. The published ones with 1,000 classes have
      those of ImageNet.
    given: what the user says, which wins: a list; 'imagenet'; or the path of a
      file, a JSON list or a name in each line.

  Raises:
    UserError: the file cannot be read, or there are not as many names as
      classes.
  """
  num_classes = weights.model.get('num_classes')
  names, where = weights.class_names, 'the weights come with'
  if given is not None:
    names, where = _read(given), 'class_names has'
  elif names is None and num_classes == 1000 and 'name' in weights.source:
    names = _read('imagenet')
  if names is None or num_classes is None:
    return None
  if len(names) != num_classes:
    raise UserError(
      f'{where} {len(names)} names for {num_classes} classes; give the names in'
      ' class_names= (--class_names= on the command line)'
    )
  return [str(name) for name in names]


def _read(given: str | os.PathLike | Sequence[str]) -> Sequence[str]:
  if not isinstance(given, str | os.PathLike):
    return given
  try:
    return labels.read_names(_IMAGENET if given == 'imagenet' else given)
  except UserError as e:
    raise UserError(f"{e}, or the word 'imagenet'") from e
