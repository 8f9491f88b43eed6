"""The interface of an evaluator: what training and `evaluate` rely on."""

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.data import pipeline


class Evaluator(typing.Protocol):
  """A file of `evaluators/`, or a module of the user's own, exports this name.

  It is made as `Evaluator(forward, mesh, **section)`:

  forward: `forward(weights, batch) -> {name: [B, ...]}`, jitted; `batch` holds
    the fields of a batch as `pipeline.EvalInput` yields them. It is an
    `objectives._forward.Forward`, which also gives intermediate values and
    gradients.
  mesh: the devices. `_rows.Rows` shards batches over them and yields the
    results for the examples of a split.
  section: the keys of the config section but `name`, `every_*` and `weights`.
    Where the signature has `batch_size` and the section has none, it is that of
    `config.input`.

  All attributes are optional.

  Attributes:
    inputs: the data by its key in the section, such as `{'data_test': ...}`:
      before anything is compiled the model is checked to take their images.
      The log names their sizes, and `evaluate` resizes positions to them.
    num_classes: of the labels that the model's logits are compared with;
      checked against `config.model.num_classes`. None: not known, or classes
      of the data's own.
    lower_is_better: names of metrics, as `run` returns them, of which less is
      better, for sweeps and `keep_best`; see `evaluation.lower_is_better`.
  """

  inputs: Mapping[str, pipeline.EvalInput]
  num_classes: int | None
  lower_is_better: Sequence[str]

  def run(self, weights: Any) -> dict[str, float]:
    """Returns the metrics by name; every process calls it and gets the same.

    `weights` are branches of the state, such as `{'params': ...}`, on the
    devices, for `forward` alone to read. A name such as `top1/cat` is the
    metric `top1` of the class `cat`; names that start with `num_` are counts.
    """
