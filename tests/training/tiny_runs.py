"""Configs of runs of a second or two, and their rows of metrics."""

import json
import pathlib

DATA = dict(name='synthetic', image_size=16, num_classes=4)
TEST = dict(DATA, split='test', num_examples=21)

_TIMING = ('second', 'stall', 'mfu')


def plain(**changes):
  """Two steps, without evaluations."""
  return (
    dict(
      model=dict(name='vit', variant='mu/8', num_classes=4),
      objective=dict(name='supervised'),
      input=dict(
        data=dict(DATA, split='train', num_examples=40),
        ops='',
        device_ops='normalize(-1, 1)',
        batch_size=16,
      ),
      optimizer=dict(name='adamw', learning_rate=1e-3),
      total_steps=2,
    )
    | changes
  )


def eventful(source='synthetic', **changes):
  """Twelve steps with all that could drift apart.

  Args:
    source: which made-up images are trained on.
    **changes: other sections.
  """
  model = dict(name='vit', variant='mu/8', num_classes=4)
  return (
    dict(
      model=model | dict(dropout_rate=0.1, stochastic_depth_rate=0.1),
      objective=dict(name='supervised', label_smoothing=0.1),
      input=dict(
        data=dict(DATA, name=source, split='train', num_examples=40),
        ops='random_crop(16, padding=2)|flip_lr',
        device_ops='normalize(-1, 1)',
        batch_size=16,
      ),
      optimizer=dict(
        name='adamw',
        learning_rate=3e-3,
        warmup_steps=2,
        weight_decay=0.1,
        grad_clip_norm=1.0,
        mu_dtype='bfloat16',
      ),
      total_steps=12,
      ema=dict(decay=0.9),
      evals=dict(
        val=dict(
          name='classification',
          data=TEST,
          ops='',
          every_steps=4,
          weights=('params', 'ema'),
        )
      ),
      checkpoint=dict(every_steps=3),
      log_every_steps=1,
    )
    | changes
  )


def rows(workdir, *, timing=True):
  """Returns the rows of metrics, with or without those of the clock."""
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  return [
    {
      k: v
      for k, v in json.loads(line).items()
      if timing or not any(word in k for word in _TIMING)
    }
    for line in lines
  ]
