"""Suggestions for mistyped names."""

import pytest

from vit_jax import suggestions


def test_the_keys_of_every_section_are_read_from_the_code_that_takes_them():
  for file, export in [suggestions._TRAIN, *suggestions._SECTIONS.values()]:
    for name in ('vit', 'supervised', 'tfds'):
      keys = suggestions.exported(file.format(name=name)).get(export)
      if keys:
        break
    assert keys, (file, export)


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('lr', 'optimizer.learning_rate'),
    ('keep_latst', 'checkpoint.keep_latest'),
    ('decay', 'ema.decay'),
    ('fsdp', 'mesh.fsdp'),
    ('min_rows', 'sharding.min_rows'),
    ('drop_path', 'model.stochastic_depth_rate'),
    ('total_step', 'total_steps'),
    ('qqq', None),
  ],
)
def test_a_key_of_a_section_is_found_without_its_section(name, expected):
  config = dict(model=dict(name='vit'), optimizer=dict(name='adamw'))
  assert suggestions.config_key(name, config) == expected
