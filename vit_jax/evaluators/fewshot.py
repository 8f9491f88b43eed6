"""Few-shot evaluation: ridge regression on a few images of each class.

The protocol of big_vision (`evaluators/fewshot_lsr.py`): frozen features and a
solution in closed form, so that the result depends on no optimizer, averaged
over several choices of the few images.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluators import _features
from vit_jax.evaluators._features import matmul
from vit_jax.parallel import mesh as mesh_lib

_BIAS = 100.0  # The constant feature: so large that l2 hardly reaches it.


@dataclasses.dataclass(eq=False, kw_only=True)
class Evaluator(_features.Splits):
  """Fits linear classifiers to a few images and tests them on others.

  Args:
    shots: numbers of training images of each class.
    num_seeds: how many choices of images, those of the seeds 0, 1, ...
    l2: weight of the sum of the squared weights relative to the sum of the
      squared errors over images and classes. Of several values each number of
      shots takes the best one (see `run`).
    held_out_per_class: images of each class on which that choice is made,
      default 25.
    Others: see `_features.Splits`.
  """

  shots: Sequence[int] = (1, 5, 10, 25)
  num_seeds: int = 3
  l2: float | Sequence[float] = 2.0**10
  held_out_per_class: int | None = None

  def __post_init__(self):
    self._shots = sorted(set(self.shots))
    self._l2 = sorted({float(x) for x in np.atleast_1d(self.l2)}, reverse=True)
    given = self.held_out_per_class
    self._held_out = 25 if given is None else given
    problems = []
    if not self._shots or self._shots[0] < 1:
      problems.append(f'shots are at least 1; got {self.shots}')
    if self.num_seeds < 1:
      problems.append(f'num_seeds is at least 1; got {self.num_seeds}')
    if not self._l2 or not self._l2[-1] > 0:
      problems.append(f'l2 is positive; got {self.l2}')
    if given is not None and len(self._l2) == 1:
      problems.append('held_out_per_class has no effect with a single l2')
    if self._held_out < 1:
      problems.append(f'held_out_per_class is at least 1; got {self._held_out}')
    if problems:
      raise UserError(f'fewshot: {"; ".join(problems)}')
    super().__post_init__()

  def run(self, params: Any) -> dict[str, float]:
    """Returns the accuracy for each number of shots.

    For seed s, `numpy.random.default_rng(s)` permutes the images of class 0,
    then those of class 1 and so on. The k shots are the first k of each, so
    the 5 are among the 10; a class that has fewer gives those.

    `<k>shot`: fraction of the test images that are classified correctly, the
      mean over the seeds.
    `<k>shot_std`: the sample standard deviation over the seeds, where there
      are several.
    `<k>shot_l2` (with several l2): the one that was taken, which classifies the
      most held-out images over all seeds; of equals the largest. Held out
      are, for every seed and class, the images that come next in the
      permutation after the largest number of shots. The choice thus sees more
      labels than k, but none of the test images.

    Also returns the facts and raises the errors of `_features.Splits.extract`.

    Raises:
      UserError: no image left to hold out, or an l2 too small for float32.
    """
    train, test, num_classes, facts = self.extract(params)
    searches = len(self._l2) > 1
    test_x = _features.put_rows(test.x, self.mesh)
    # For each seed, number of shots and l2; -1 where float32 failed.
    correct = np.zeros((self.num_seeds, len(self._shots), len(self._l2)), int)
    held_out_correct = np.zeros_like(correct)
    for seed in range(self.num_seeds):
      index, rank = _permuted(train.label, num_classes, seed)
      splits = [(correct, test_x, test.label)]
      if searches:
        held_out = self._held_out_images(train, index, rank)
        splits.append((held_out_correct, *held_out))
      classifiers = self._classifiers(train, index, rank, num_classes)
      for i, classifier in enumerate(classifiers):
        where = seed, *divmod(i, len(self._l2))
        for counts, *rows in splits:
          counts[where] = _num_correct(classifier, *rows, self.mesh)
    # Of equals argmax takes the first, which is the largest l2.
    best = held_out_correct.sum(axis=0).argmax(axis=-1)
    result = {}
    for i, shots in enumerate(self._shots):
      l2 = self._l2[best[i]]
      chosen = correct[:, i, best[i]]
      if (chosen < 0).any():
        raise UserError(
          f'fewshot: l2={l2} is too small for {shots} shots: the equations '
          'cannot be solved in float32'
        )
      accuracy = chosen / len(test.label)
      result[f'{shots}shot'] = accuracy.mean()
      if self.num_seeds > 1:
        result[f'{shots}shot_std'] = accuracy.std(ddof=1)
      if searches:
        result[f'{shots}shot_l2'] = l2
    return {key: float(value) for key, value in result.items()} | facts

  def _classifiers(self, train, index, rank, num_classes: int):
    """Yields one for each number of shots and l2, the latter in turn."""
    index, rank = (x[rank < self._shots[-1]] for x in (index, rank))
    x_MD = train.x[index]
    # All of them go to the devices once, where every fit has the same shape.
    rows = [
      _features.put_rows(x, self.mesh) for x in (x_MD, train.label[index])
    ]
    for shots in self._shots:
      used_M = rank < shots
      # float32 sums of thousands of rows would be good to five digits only.
      mean_D = np.mean(x_MD[used_M], axis=0, dtype=np.float64)
      std_D = np.std(x_MD[used_M], axis=0, dtype=np.float64) + 1e-5
      scale = [_features.put(np.float32(x), self.mesh) for x in (mean_D, std_D)]
      used = _features.put_rows(used_M, self.mesh)
      for l2 in self._l2:
        weight_DC = _ridge(
          *rows,
          used,
          *scale,
          _features.put(np.float32(l2), self.mesh),
          num_classes=num_classes,
          out_sharding=mesh_lib.replicated(self.mesh),
        )
        yield weight_DC, *scale

  def _held_out_images(
    self, train, index, rank
  ) -> tuple[jax.Array, np.ndarray]:
    first = self._shots[-1]
    index = index[(rank >= first) & (rank < first + self._held_out)]
    if not len(index):
      raise UserError(
        f'fewshot: with {first} shots no training image is left to choose l2 '
        'on; give a single l2 or fewer shots'
      )
    rows = _features.put_rows(train.x[index], self.mesh)
    return rows, train.label[index]


def _permuted(
  label_N: np.ndarray, num_classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns all images, class by class, and the rank of each in its class."""
  rng = np.random.default_rng(seed)
  classes = [
    rng.permutation(np.flatnonzero(label_N == i)) for i in range(num_classes)
  ]
  ranks = [np.arange(len(images)) for images in classes]
  return np.concatenate(classes), np.concatenate(ranks)


def _num_correct(classifier, x_MD: jax.Array, label_N: np.ndarray, mesh) -> int:
  """Returns how many of the first N rows are correct; -1 without a solution.

  Args:
    classifier: weights [D + 1, C], mean [D] and standard deviation [D].
    x_MD: rows as `_features.put_rows` gives them.
  """
  answer_M = _answer(x_MD, *classifier, out_sharding=mesh_lib.replicated(mesh))
  answer_N = jax.device_get(answer_M)[: len(label_N)]
  return -1 if answer_N[0] < 0 else int(np.sum(answer_N == label_N))


@functools.partial(jax.jit, static_argnames=('num_classes', 'out_sharding'))
def _ridge(
  x_MD, label_M, used_M, mean_D, std_D, l2, *, num_classes, out_sharding
):
  """Returns `W = (X'X + l2 I)^-1 X'Y`, float32 `[D + 1, C]`.

  X are the used rows, standardised, with the constant feature; Y is one-hot.
  The targets of big_vision, -1 and 1, are 2 Y - 1: their scores are twice ours
  minus the same number for all classes, and ours, near 0, keep more digits.

  big_vision solves the N equations of the dual form if there are fewer images
  than features; the solution is the same one. Forming X'X in float32 loses
  digits, which one step of refinement by residuals of X itself brings back: the
  corrected seminormal equations (Björck 1987, Linear Algebra and its
  Applications 88/89).
  """
  used_M1 = used_M[:, None].astype(jnp.float32)
  x_ME = _design(x_MD, mean_D, std_D) * used_M1
  y_MC = jax.nn.one_hot(label_M, num_classes)
  x_EM = x_ME.T
  gram_EE = matmul(x_EM, x_ME) + l2 * jnp.eye(len(x_EM))
  factor = jax.scipy.linalg.cho_factor(gram_EE)
  w_EC = jax.scipy.linalg.cho_solve(factor, matmul(x_EM, y_MC))
  residual_EC = matmul(x_EM, y_MC - matmul(x_ME, w_EC)) - l2 * w_EC
  w_EC += jax.scipy.linalg.cho_solve(factor, residual_EC)
  return jax.lax.with_sharding_constraint(w_EC, out_sharding)


@functools.partial(jax.jit, static_argnames='out_sharding')
def _answer(x_MD, w_EC, mean_D, std_D, *, out_sharding):
  """Returns the class of each row, or -1 for all without a solution."""
  scores_MC = matmul(_design(x_MD, mean_D, std_D), w_EC)
  answer_M = jnp.argmax(scores_MC, axis=-1)
  answer_M = jnp.where(jnp.isfinite(w_EC).all(), answer_M, -1)
  return jax.lax.with_sharding_constraint(answer_M, out_sharding)


def _design(x_MD, mean_D, std_D):
  x_MD = (x_MD - mean_D[None]) / std_D[None]
  return jnp.pad(x_MD, ((0, 0), (0, 1)), constant_values=_BIAS)
