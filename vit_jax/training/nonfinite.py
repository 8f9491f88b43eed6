"""Detection of non-finite losses and gradients, and the message of their cause.

`train_step` computes them and, with `on_nonfinite='skip'`, leaves such updates
out; here the fetched metrics of each step are checked on the host.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.data import pipeline
from vit_jax.errors import UserError
from vit_jax.printable import printable
from vit_jax.training import loss_scale

# While updates are skipped the weights stay as they are, so skips in a row are
# independent draws of batches. Even where nine batches in ten are bad, 100 of
# them follow one another once in 40,000 times; where the weights are the
# cause, no update will ever succeed. Skips that lower a dynamic loss scale do
# not count.
MAX_CONSECUTIVE_SKIPS = 100

_MAX_NAMED = 3  # Bad examples in a message.
_CHANGES = (
  'a lower optimizer.learning_rate or a longer warm-up, '
  'optimizer.grad_clip_norm=1.0'
)


@dataclasses.dataclass
class Check:
  """Follows the metrics of a run and says when and why it has to end.

  Args:
    on_nonfinite: `'stop'`, at the first metric that is not finite, or `'skip'`.
    input: its batch is read again, on the host, where the run has to end.
    max_consecutive_skips: updates in a row that may be skipped.

  Raises:
    UserError: a limit below 1.
  """

  on_nonfinite: str
  _: dataclasses.KW_ONLY
  input: pipeline.TrainInput
  total_steps: int
  max_consecutive_skips: int = MAX_CONSECUTIVE_SKIPS

  def __post_init__(self):
    if self.max_consecutive_skips < 1:
      raise UserError(
        f'max_consecutive_skips={self.max_consecutive_skips}: expected 1 or '
        'more'
      )
    self._in_a_row = 0  # How many of the newest steps were skipped.
    self.skipped_updates = 0  # Of the whole run so far.

  def problem(
    self,
    step: int,
    metrics: Mapping[str, Any],
    find_good: Callable[[], int | None],
  ) -> str | None:
    """Returns why the run has to end after `step`, or None.

    The text names the metrics, the checkpoint to continue from, and examples
    of the batch with values that are not finite or, where there are none, the
    settings to change.

    Args:
      step: every step is given once, in order.
      metrics: its fetched scalars by name.
      find_good: returns the step of the newest good checkpoint, None if there
        is none; called only where the run has to end.
    """
    bad = {k: float(v) for k, v in metrics.items() if not math.isfinite(v)}
    self.skipped_updates = int(metrics.get('train/skipped_updates', 0))
    all_skipped = step == self.total_steps == self.skipped_updates
    # The step has halved the loss scale; at its lowest nothing is left to try.
    scale = metrics.get('train/loss_scale', 0)
    if bad.keys() == {'train/grad_norm'} and scale > loss_scale.MIN_SCALE:
      if not all_skipped:
        return None
    if self.on_nonfinite == 'stop':
      if not bad:
        return None
      found = f'all {step} updates were skipped. ' if all_skipped else ''
      other = "on_nonfinite='skip', which leaves such updates out and counts"
      other += ' them.'
    else:
      # For these `train_step` skips an update.
      skipped = not bad.keys().isdisjoint({'train/loss', 'train/grad_norm'})
      self._in_a_row = self._in_a_row + 1 if skipped else 0
      if self._in_a_row >= self.max_consecutive_skips:
        found = (
          f'the last {self._in_a_row} updates were skipped '
          f'(max_consecutive_skips={self.max_consecutive_skips}). '
        )
      elif all_skipped:
        found = f'all {step} updates of the run were skipped. '
      else:
        return None
      other = 'float32 in place of a 16-bit model.dtype.'
    values = ', '.join(f'{name} is {value}' for name, value in bad.items())
    saved = self._saved(step, find_good())
    return f'step {step}: {found}{values}. {saved} {self._advice(step, other)}'

  def _saved(self, step: int, good: int | None) -> str:
    if self.on_nonfinite == 'stop':
      if good is None:
        return 'No checkpoint was saved before it; the run starts afresh.'
      return (
        f'The checkpoint of step {good} is good; the same command continues '
        'from it.'
      )
    if good is None:
      return 'No checkpoint was saved.'
    if good < step - self._in_a_row:
      return f'The same command continues from the checkpoint of step {good}.'
    return (
      f'The checkpoint of step {good} has the weights of all these steps: the '
      'same command helps only if the data was the cause; otherwise start in '
      'another workdir.'
    )

  def _advice(self, step: int, last: str) -> str:
    """Returns what to try, after a look at the data of the step."""
    try:
      names = self._bad_examples(step)
    except UserError as e:
      return f'Its batch cannot be read again: {e}'
    if names:
      shown = '; '.join(names[:_MAX_NAMED])
      if len(names) > _MAX_NAMED:
        shown += f'; and {len(names) - _MAX_NAMED} more'
      other = f', or {last}' if self.on_nonfinite == 'stop' else '.'
      return (
        f'The cause is the data: {shown}. Repair or remove these examples'
        f'{other}'
      )
    whose, others = 'its batch', ''
    if jax.process_count() > 1:
      whose = 'its batch that this process reads'
      others = ' (other processes may name examples of theirs)'
    return (
      f'The images and labels of {whose} are finite{others}. To try: '
      f'{_CHANGES}, or {last}'
    )

  def _bad_examples(self, step: int) -> list[str]:
    """Returns what is wrong with the examples of a step, of this process."""
    batches = self.input.batches(step - 1)
    try:
      batch = dict(next(batches))
    finally:
      batches.close()
    indices = batch.pop('index')
    found = []
    for key, values in batch.items():
      rows = values.reshape(len(values), -1)
      if values.dtype.kind == 'f':
        found.append((~np.isfinite(rows), f'{key} with NaN or infinity'))
      elif key == 'label' and self.input.num_classes:
        unknown = (rows < 0) | (rows >= self.input.num_classes)
        found.append(
          (unknown, f'label outside 0..{self.input.num_classes - 1}')
        )
    describe = self.input.source.describe
    return [
      f'{printable(describe(int(index)))}: {what}'
      for bad, what in found
      for index in indices[bad.any(axis=1)]
    ]
