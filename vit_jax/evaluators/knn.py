"""k-nearest-neighbour classification of frozen features.

The protocol of DINO (`eval_knn.py`): cosine similarity, votes weighted by
exp(similarity / temperature). It is exact for any number of test images, where
DINO's loop over 100 chunks needs at least 100 of them.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from vit_jax.errors import UserError
from vit_jax.evaluators import _features, _rows
from vit_jax.parallel import mesh as mesh_lib

_log = logging.getLogger(__name__)

# Similarities that a device holds at once: 256 MiB.
_MAX_SIMILARITIES = 2**26
_MAX_QUERIES = 1024


@dataclasses.dataclass(eq=False, kw_only=True)
class Evaluator(_features.Splits):
  """Finds the nearest training images of every test image.

  DINO's representation is the normalised class token, 'features' of a model
  with pooling='token'.

  Args:
    k: how many training images vote. Of a smaller training set all do, with a
      warning, and `<k>nn` keeps its name.
    temperature: of the votes.
    Others: see `_features.Splits`.
  """

  k: Sequence[int] = (10, 20, 100, 200)
  temperature: float = 0.07

  def __post_init__(self):
    self._k = tuple(sorted(set(self.k)))
    if not self._k or self._k[0] < 1 or not self.temperature > 0:
      raise UserError(
        f'knn: k are at least 1 and temperature is positive; got k={self.k}, '
        f'temperature={self.temperature}'
      )
    super().__post_init__()

  def run(self, params: Any) -> dict[str, float]:
    """Returns the accuracy for each k.

    `<k>nn`: fraction of the test images whose class has the largest sum of
      exp(similarity / temperature) over the k most similar training images. Of
      equally similar images the earlier counts as nearer, of equal sums the
      lower class wins.

    Also returns the facts and raises the errors of `_features.Splits.extract`.
    """
    train, test, num_classes, facts = self.extract(params)
    if self._k[-1] > len(train.x):
      _log.warning(
        'knn: only %d training images can vote, fewer than k=%d',
        len(train.x),
        self._k[-1],
      )
    answers = _rows.fetch_one_behind(self._answers(train, test, num_classes))
    answer_KM = np.concatenate(list(answers), axis=1)
    accuracies = (answer_KM[:, : len(test.label)] == test.label).mean(axis=1)
    names = (f'{k}nn' for k in self._k)
    return dict(zip(names, accuracies.tolist(), strict=True)) | facts

  def _answers(self, train, test, num_classes: int) -> Iterator[jax.Array]:
    """Yields `[len(k), Q]` for Q test images at a time, at last padded."""
    train_MD = _unit(_features.put_rows(train.x, self.mesh))
    label_M = _features.put_rows(train.label, self.mesh)
    known_M = _features.put_rows(np.ones(len(train.x), bool), self.mesh)
    per_device = train_MD.sharding.shard_shape(train_MD.shape)[0]
    num_queries = min(
      max(1, _MAX_SIMILARITIES // per_device), _MAX_QUERIES, len(test.x)
    )
    for start in range(0, len(test.x), num_queries):
      query_QD = test.x[start : start + num_queries]
      padding = num_queries - len(query_QD)
      query_QD = np.pad(query_QD, ((0, padding), (0, 0)))
      yield _vote(
        train_MD,
        label_M,
        known_M,
        _features.put(query_QD, self.mesh),
        k=self._k,
        temperature=float(self.temperature),
        num_classes=num_classes,
        mesh=self.mesh,
      )


@jax.jit
def _unit(x_ND):
  norm_N1 = jnp.linalg.norm(x_ND, axis=-1, keepdims=True)
  return x_ND / jnp.maximum(norm_N1, 1e-12)  # torch's F.normalize


@functools.partial(
  jax.jit, static_argnames=('k', 'temperature', 'num_classes', 'mesh')
)
def _vote(
  train_MD, label_M, known_M, query_QD, *, k, temperature, num_classes, mesh
):
  """Returns the class of each query for each k, `[len(k), Q]`.

  Every device finds the nearest of its own training images; only those travel.
  Training images have norm 1, `known_M` is False for padding, and k ascends.
  """
  by_rows = mesh_lib.batch_sharding(mesh).spec
  # Under plain jit XLA 0.10 gathers all similarities before it sorts them.
  near_QK, label_QK = jax.shard_map(
    functools.partial(_nearest, k=k[-1]),
    mesh=mesh,
    in_specs=(by_rows, by_rows, by_rows, P()),
    out_specs=P(None, *by_rows),
  )(train_MD, label_M, known_M, _unit(query_QD))
  # The devices' lists side by side are in the order of the source: of equals
  # the earlier image comes first here too.
  near_QK, label_QK = _top(near_QK, label_QK, k[-1])
  # Divided by the nearest one's vote, which no sum notices, none overflows.
  vote_QK = jnp.exp((near_QK - near_QK[:, :1]) / temperature)
  answers = []
  for number in k:
    votes_QKC = jnp.where(
      label_QK[:, :number, None] == jnp.arange(num_classes)[None, None],
      vote_QK[:, :number, None],
      0.0,
    )
    answers.append(jnp.argmax(jnp.sum(votes_QKC, axis=1), axis=-1))
  return jax.lax.with_sharding_constraint(
    jnp.stack(answers), mesh_lib.replicated(mesh)
  )


def _nearest(train_ND, label_N, known_N, query_QD, *, k):
  """Returns similarities and labels `[Q, K]` of the nearest, in order."""
  similarity_QN = _features.matmul(query_QD, train_ND.T)
  similarity_QN = jnp.where(known_N[None], similarity_QN, -jnp.inf)
  label_QN = jnp.broadcast_to(label_N[None], similarity_QN.shape)
  return _top(similarity_QN, label_QN, k)


def _top(near_QN, label_QN, k):
  """Returns the k largest, or all of fewer, and their labels."""
  near_QK, index_QK = jax.lax.top_k(near_QN, min(k, near_QN.shape[-1]))
  return near_QK, jnp.take_along_axis(label_QN, index_QK, axis=-1)
