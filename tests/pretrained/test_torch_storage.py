"""State dicts on disk: where the weights are, and what is not read."""

import argparse
import json
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from vit_jax.errors import UserError
from vit_jax.pretrained.formats import state_dict

ARRAYS = {'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def torch():
  return pytest.importorskip('torch')


def tensors(torch):
  return {name: torch.tensor(array) for name, array in ARRAYS.items()}


def assert_is_arrays(stored, expected=ARRAYS):
  assert stored.arrays.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(stored.arrays[name], array)
    assert stored.arrays[name].dtype == array.dtype


def test_a_folder_is_read_with_its_configs(tmp_path):
  configs = {'config': {'x': 1}, 'preprocessor_config': {'y': 2}}
  state_dict.write_files(tmp_path, ARRAYS, configs)
  stored = state_dict.read_files(tmp_path)
  assert_is_arrays(stored)
  assert (stored.config, stored.preprocessor) == ({'x': 1}, {'y': 2})
  same = state_dict.read_files(tmp_path / 'model.safetensors')
  assert same.config == {'x': 1}


def test_a_file_has_its_configs_inside_and_ignores_those_beside(tmp_path):
  (tmp_path / 'config.json').write_text('{"of": "another"}')
  path = tmp_path / 'mine.safetensors'
  state_dict.write_files(path, ARRAYS, {'config': {'x': 1}})
  assert state_dict.read_files(path).config == {'x': 1}
  safetensors.numpy.save_file(ARRAYS, path)
  assert state_dict.read_files(path).config == {}


def test_the_file_says_that_it_is_for_torch(tmp_path):
  state_dict.write_files(tmp_path, ARRAYS, {})
  path = tmp_path / 'model.safetensors'
  with safetensors.safe_open(path, framework='np') as file:
    assert file.metadata() == {'format': 'pt'}


def test_weights_in_several_files_are_put_together(tmp_path):
  arrays = {'a': np.ones(2, np.float32), 'b': np.zeros(3, np.float32)}
  index = {name: f'model-{name}.safetensors' for name in arrays}
  for name, file in index.items():
    safetensors.numpy.save_file({name: arrays[name]}, tmp_path / file)
  path = tmp_path / 'model.safetensors.index.json'
  path.write_text(json.dumps({'weight_map': index}))
  assert_is_arrays(state_dict.read_files(tmp_path), arrays)
  outside = {'a': f'../{tmp_path.name}/{index["a"]}'}  # It is there.
  (tmp_path / 'model.bin.index.json').write_text(
    json.dumps({'weight_map': outside})
  )
  with pytest.raises(UserError, match='names of files beside it'):
    state_dict.read_files(tmp_path / 'model.bin.index.json')
  (tmp_path / index['b']).unlink()
  with pytest.raises(UserError, match=r'cannot read .*model-b.safetensors'):
    state_dict.read_files(tmp_path)


def test_bfloat16_and_float16_keep_their_dtype(tmp_path, torch):
  half = torch.tensor([1.5, -0.1])
  arrays = {
    'b': np.array([1.5, -0.1], ml_dtypes.bfloat16),
    'h': np.array([1.5, -0.1], np.float16),
  }
  torch.save({'b': half.bfloat16(), 'h': half.half()}, tmp_path / 'x.pth')
  assert_is_arrays(state_dict.read_files(tmp_path / 'x.pth'), arrays)
  state_dict.write_files(tmp_path / 'x.safetensors', arrays, {})
  assert_is_arrays(state_dict.read_files(tmp_path / 'x.safetensors'), arrays)


def test_the_weights_are_found_in_a_checkpoint(tmp_path, torch):
  path = tmp_path / 'checkpoint.pth'
  first = tensors(torch)
  second = {name: t + 1 for name, t in first.items()}
  content = {
    'model_ema': second,
    'model': first,
    'optimizer': {'state': {}},
    'args': argparse.Namespace(lr=0.1),
    'epoch': 3,
  }
  torch.save(content, path)
  assert_is_arrays(state_dict.read_files(path))
  stored = state_dict.read_files(path, 'model_ema')
  assert_is_arrays(stored, {k: v + 1 for k, v in ARRAYS.items()})
  with pytest.raises(UserError, match="no entry 'teacher'; it has"):
    state_dict.read_files(path, 'teacher')
  torch.save({'student': first, 'teacher': second}, path)
  assert_is_arrays(
    state_dict.read_files(path), {k: v + 1 for k, v in ARRAYS.items()}
  )
  torch.save({'net': first, 'other': second}, path)
  with pytest.raises(UserError, match=r"set entry= .* \['net', 'other'\]"):
    state_dict.read_files(path)


class Malicious:
  def __reduce__(self):
    return (print, ('this must not run',))


def test_code_in_a_pickle_is_not_run(tmp_path, torch, capsys):
  path = tmp_path / 'bad.pth'
  torch.save({'model': Malicious()}, path)
  with pytest.raises(UserError, match=r'cannot read .*bad.pth'):
    state_dict.read_files(path)
  assert 'must not run' not in capsys.readouterr().out


def test_a_pickle_without_torch_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'x.pth').write_bytes(b'')
  with pytest.raises(UserError, match='pip install torch'):
    state_dict.read_files(tmp_path / 'x.pth')


def test_broken_and_unclear_places_are_named(tmp_path, torch):
  broken = tmp_path / 'x.safetensors'
  broken.write_bytes(b'12345678' * 4)
  with pytest.raises(UserError, match=r'cannot read .*x.safetensors'):
    state_dict.read_files(broken)
  torch.save([1, 2], tmp_path / 'list.pth')
  with pytest.raises(UserError, match='holds a list, not a state dict'):
    state_dict.read_files(tmp_path / 'list.pth')
  with pytest.raises(UserError, match=r'one file of weights.*list.pth, x.safe'):
    state_dict.read_files(tmp_path)
  with pytest.raises(UserError, match=r'expected one of .safetensors, .pth'):
    state_dict.read_files(tmp_path / 'x.h5')
