"""Headers that recipes read: broken ones are one error, and quickly so."""

import json
import os

import pytest

from vit_jax.configs import common_weights


def _header(path, said, *, length=None):
  text = json.dumps({'__metadata__': {'vit_jax': said}}).encode()
  length = len(text) if length is None else length
  path.write_bytes(length.to_bytes(8, 'little') + text)


@pytest.mark.parametrize(
  'said, length',
  [
    ('{}', 2**63),  # More than can be allocated.
    ('[' * 100_000, None),
    ('[1]', None),
    ('{"model": 3, "preprocess": {}}', None),
    ('{"model": {}, "preprocess": [1]}', None),
    ('{"model": {}, "preprocess": {"device_ops": 3}}', None),
  ],
)
def test_a_broken_header_is_the_same_error(said, length, tmp_path):
  _header(tmp_path / 'x.safetensors', said, length=length)
  with pytest.raises(
    ValueError, match='cannot be read as a run or a file of ours'
  ):
    common_weights.model_of(str(tmp_path / 'x.safetensors'))


def test_the_config_of_a_run_that_is_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'config.json')
  with pytest.raises(
    ValueError, match='cannot be read as a run or a file of ours'
  ):
    common_weights.model_of(str(tmp_path))
