"""Accuracies on ImageNet-1k that authors published for their weights.

Only where the authors list a number beside the very file: of other weights
nothing is said. Measured on the 50,000 validation images, prepared as in
`presets`.
"""

from typing import NamedTuple


class Score(NamedTuple):
  """Published accuracy, in percent with the authors' digits.

  Attributes:
    top1: top-1.
    top5: top-5, or None where none was published.
    source: where.
  """

  top1: float
  top5: float | None
  source: str


_AUGREG = 'README of google-research/vision_transformer'
_DEIT = 'README of facebookresearch/deit'
_DEIT3 = 'README_revenge of facebookresearch/deit'

SCORES: dict[str, Score] = {
  'augreg-Ti/16-i1k-384': Score(78.22, None, _AUGREG),
  'augreg-S/32-i1k-384': Score(79.58, None, _AUGREG),
  'augreg-S/16-i1k-384': Score(83.73, None, _AUGREG),
  'augreg-B/32-i1k-384': Score(83.59, None, _AUGREG),
  'augreg-B/16-i1k-384': Score(85.49, None, _AUGREG),
  'augreg-L/16-i1k-384': Score(85.59, None, _AUGREG),
  'deit-Ti/16': Score(72.202, 91.124, _DEIT),
  'deit-S/16': Score(79.854, 94.968, _DEIT),
  'deit-B/16': Score(81.846, 95.594, _DEIT),
  'deit-B/16-384': Score(82.890, 96.222, _DEIT),
  'deit3-S/16-224-1k': Score(81.4, None, _DEIT3),
  'deit3-S/16-224-21k': Score(83.1, None, _DEIT3),
  'deit3-S/16-384-1k': Score(83.4, None, _DEIT3),
  'deit3-S/16-384-21k': Score(84.8, None, _DEIT3),
  'deit3-M/16-224-1k': Score(83.0, None, _DEIT3),
  'deit3-M/16-224-21k': Score(84.5, None, _DEIT3),
  'deit3-B/16-224-1k': Score(83.8, None, _DEIT3),
  'deit3-B/16-224-21k': Score(85.7, None, _DEIT3),
  'deit3-B/16-384-1k': Score(85.0, None, _DEIT3),
  'deit3-B/16-384-21k': Score(86.7, None, _DEIT3),
  'deit3-L/16-224-1k': Score(84.9, None, _DEIT3),
  'deit3-L/16-224-21k': Score(87.0, None, _DEIT3),
  'deit3-L/16-384-1k': Score(85.8, None, _DEIT3),
  'deit3-L/16-384-21k': Score(87.7, None, _DEIT3),
}
