"""Epochs of a config in steps, in sections of sections and in lists."""

import pytest

from vit_jax.errors import UserError
from vit_jax.training import durations


def test_epochs_become_steps_wherever_they_are():
  section = dict(
    decay=dict(name='cosine', over_epochs=2),
    hold_epochs=[('head/.*', 0.5), ('tail/.*', 0)],
    warmup_epochs=3,
    names={0: 'cat'},
    other_epochs=None,
    other_steps=4,
  )
  assert durations.in_steps(section, 10, 'x') == dict(
    decay=dict(name='cosine', over_steps=20),
    hold_steps=[('head/.*', 5), ('tail/.*', 0)],
    warmup_steps=30,
    names={0: 'cat'},
    other_steps=4,
  )


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    (dict(decay=dict(over_epochs='2')), r"x.decay.over_epochs='2': expected"),
    (dict(hold_epochs=['head/.*']), r"x.hold_epochs: 'head/.*' is not a pair"),
    (dict(hold_epochs=[('a', -1)]), r"x.hold_epochs: 'a'=-1: expected"),
    (
      dict(decay=dict(over_epochs=1, over_steps=2)),
      r'x.decay: give over_steps or its _epochs form, not both',
    ),
  ],
)
def test_impossible_durations_name_their_place(section, message):
  with pytest.raises(UserError, match=message):
    durations.in_steps(section, 10, 'x')


def test_errors_name_the_keys_that_the_user_wrote():
  section = dict(
    decay=dict(over_epochs=0), hold_epochs=[('a', 1)], warmup_epochs=5
  )
  text = 'x.hold_steps: a; x.decay.over_steps=0; warmup_steps=40; stair_steps=9'
  with pytest.raises(UserError) as error, durations.as_written(section):
    raise UserError(text)
  assert str(error.value) == (
    'x.hold_epochs: a; x.decay.over_epochs=0; warmup_epochs=5 (40 steps); '
    'stair_steps=9'
  )
