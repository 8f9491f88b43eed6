"""Precision, recall, ROC-AUC and the like of weighted examples, in NumPy.

A weight counts how often an example occurs, so that a bootstrap resample is a
vector of weights. What is divided by zero is 0 for the rates of answers, as in
scikit-learn's `zero_division=0`, and NaN for rankings.
"""

from collections.abc import Iterator

import numpy as np


def rates(
  hits: np.ndarray, answers: np.ndarray, labels: np.ndarray, total: float
) -> dict[str, np.ndarray]:
  """Returns precision, recall, specificity and F1, of the shape of the counts.

  Args:
    hits: how often a class was answered and right (true positives).
    answers: how often it was answered.
    labels: how often it was right.
    total: number of examples.
  """
  hits, answers, labels = (
    np.asarray(x, float) for x in (hits, answers, labels)
  )
  negatives = total - labels
  return {
    'precision': _divided(hits, answers),
    'recall': _divided(hits, labels),
    'specificity': _divided(negatives - (answers - hits), negatives),
    'f1': _divided(2 * hits, answers + labels),
  }


class Ranking:
  """The order of examples by their score for one class."""

  def __init__(self, score_N: np.ndarray, positive_N: np.ndarray):
    self._order = np.argsort(-score_N, kind='stable')
    score_N = score_N[self._order]
    self._positive = positive_N[self._order].astype(bool)
    # Equal scores are one threshold.
    self._starts = np.flatnonzero(np.r_[True, score_N[1:] != score_N[:-1]])

  def areas(self, weight_N: np.ndarray) -> dict[str, float]:
    """Returns ROC-AUC and average precision; NaN where a side is empty.

    ROC-AUC counts ties as one half. Average precision is the sum over
    thresholds of precision times the rise of recall, without interpolation, as
    in scikit-learn.
    """
    weight_N = weight_N[self._order]
    group = np.add.reduceat
    positive = group(np.where(self._positive, weight_N, 0.0), self._starts)
    negative = group(np.where(self._positive, 0.0, weight_N), self._starts)
    above, below = np.cumsum(positive), np.cumsum(negative)
    if not (above[-1] and below[-1]):
      return {'roc_auc': np.nan, 'average_precision': np.nan}
    worse = below[-1] - below + negative / 2
    answered = np.maximum(above + below, 1.0)  # Groups of no weight add 0.
    return {
      'roc_auc': float(positive @ worse / (above[-1] * below[-1])),
      'average_precision': float(positive @ (above / answered) / above[-1]),
    }


def resamples(num_examples: int, count: int, seed: int) -> Iterator[np.ndarray]:
  """Yields how often each example occurs in each bootstrap resample."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    drawn = rng.integers(num_examples, size=num_examples)
    yield np.bincount(drawn, minlength=num_examples).astype(float)


def interval(values_R: np.ndarray, confidence: float) -> tuple[float, float]:
  """Returns the percentile interval (Efron and Tibshirani 1993, section 13.3).

  Resamples in which a value is not defined (NaN) are left out.
  """
  values_R = values_R[np.isfinite(values_R)]
  if not values_R.size:
    return np.nan, np.nan
  tail = (1 - confidence) / 2
  low, high = np.quantile(values_R, [tail, 1 - tail])
  return float(low), float(high)


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
