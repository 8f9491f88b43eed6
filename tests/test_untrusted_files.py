"""Nothing that a weights file names is imported or called, whatever it is."""

import contextlib
import dataclasses
import functools
import http.server
import importlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import PIL.Image
import pytest

import vit_jax.inference.model
from vit_jax import lookup
from vit_jax.checkpoints import manager
from vit_jax.commands import convert, evaluate, predict, summary
from vit_jax.configs import finetune
from vit_jax.data import device_ops_language, ops_language
from vit_jax.errors import UserError
from vit_jax.pretrained import initialize, like
from vit_jax.pretrained.formats import (
  huggingface,
  npz,
  vit_jax as ours,
)

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = [
  file.stem
  for file in sorted((ROOT / 'configs').glob('*.py'))
  if 'def get_config' in file.read_text()
  and file.stem != 'evaluate'  # It has no input.
]
OPS, DEVICE_OPS = 'decode|resize(16)', 'normalize(-1, 1)'
# A module that leaves a mark when it is imported. It is a model, and ops.
PAYLOAD = """
import pathlib
pathlib.Path({marker!r}).touch()

from vit_jax.models import _stems, vit

Model = vit.Model
Stem = _stems.PatchEmbedding

def op():
  return lambda example, rng: example

def device_op():
  return lambda batch, rng, *, train: batch
"""


@pytest.fixture
def marker(tmp_path, monkeypatch):
  """Returns the path that appears where the module payload.code is imported."""
  path = tmp_path / 'marker'
  folder = tmp_path / 'modules' / 'payload'
  folder.mkdir(parents=True)
  (folder / 'code.py').write_text(PAYLOAD.format(marker=str(path)))
  monkeypatch.syspath_prepend(folder.parent)
  yield path
  for name in ('payload', 'payload.code'):
    sys.modules.pop(name, None)


@pytest.fixture
def make(tiny_weights, tmp_path):
  """Returns `make(carrier, key, text) -> path` of weights with such a text."""

  def write(carrier, key, text):
    weights = tiny_weights(activation='gelu_tanh')
    path = tmp_path / f'weights.{carrier}'
    if key in ('name', 'stem'):
      section = dict(weights.model, **{key: text})
      weights = dataclasses.replace(weights, model=section)
    else:
      preprocess = weights.preprocess | {key: text}
      weights = dataclasses.replace(weights, preprocess=preprocess)
    _WRITE[carrier](weights, path)
    return path

  return write


def _write_npz(weights, path):
  section = dict(weights.model)
  said = {key: section.pop(key) for key in ('name', 'stem') if key in section}
  plain = dataclasses.replace(weights, model=section | dict(name='vit'))
  npz.write(plain, path)
  arrays, note = npz.read_arrays(path)
  note['model'] = note.get('model', {}) | said
  npz.write_arrays(path, arrays, note)


def _write_run(weights, path):
  config = dict(
    model=weights.model,
    objective=dict(name='payload.code'),
    input=dict(device_ops=weights.preprocess['device_ops'], ops='payload.op'),
    evals=dict(val=dict(name='payload', ops=weights.preprocess['ops'])),
  )
  checkpointer = manager.Checkpointer(path / 'checkpoints')
  params = jax.tree.map(jax.numpy.asarray, weights.params)
  # Its checksum is right: whoever forges a file computes that as well.
  checkpointer.save(1, dict(params=params), config=config, wait=True)
  checkpointer.close()
  (path / 'config.json').write_text(json.dumps(config))


_WRITE = {'safetensors': ours.write, 'npz': _write_npz, 'run': _write_run}
TEXTS = [
  ('ops', 'decode|payload.code.op'),
  ('ops', 'decode|multi_crop(16, local_ops="payload.code.op")'),
  ('device_ops', 'payload.code.device_op|normalize(-1, 1)'),
  ('name', 'payload.code'),
  ('stem', 'payload.code'),
]


@pytest.fixture
def photo(tmp_path):
  path = tmp_path / 'photo.png'
  PIL.Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(path)
  return str(path)


@pytest.mark.parametrize('carrier', _WRITE)
@pytest.mark.parametrize(('key', 'text'), TEXTS)
def test_a_file_runs_no_code(carrier, key, text, make, marker, photo):
  path = make(carrier, key, text)
  with pytest.raises(UserError) as e:
    vit_jax.load(path).predict(photo)
  option = 'model' if key in ('name', 'stem') else key
  assert 'If you trust' in str(e.value) and f'{option}=' in str(e.value)
  assert not marker.exists()


def test_a_user_who_names_one_module_trusts_no_other(make, marker):
  path = make('safetensors', 'stem', 'payload.code')
  with pytest.raises(UserError, match=r"'stem': 'payload\.code'"):
    vit_jax.load(path, model=dict(name='vit'))
  path = make('safetensors', 'name', 'payload.code')
  with pytest.raises(UserError, match=r"'name': 'payload\.code'"):
    vit_jax.load(path, model=dict(stem='other.code'))
  assert not marker.exists()


def test_a_module_without_a_dot_is_not_imported_either(make, marker, tmp_path):
  (tmp_path / 'modules' / 'undotted.py').write_text(
    PAYLOAD.format(marker=str(marker))
  )
  path = str(make('safetensors', 'name', 'undotted'))
  with pytest.raises(UserError, match=r"'name': 'undotted'.*--model"):
    like.complete(dict(model=dict(like=path)))
  # Who gives another key of the section has not named the module.
  with pytest.raises(UserError, match='that a file names is imported'):
    vit_jax.load(path, model=dict(num_classes=None))
  argument = f'dataset=folder:/data,num_classes=5,resolution=16,model={path}'
  with pytest.raises(ValueError, match="names the code 'undotted'"):
    finetune.get_config(argument)
  assert not marker.exists()


@pytest.mark.parametrize('carrier', _WRITE)
@pytest.mark.parametrize(('key', 'text'), [TEXTS[0], *TEXTS[2:]])
def test_names_by_the_user_are_used(carrier, key, text, make, marker, photo):
  path = make(carrier, key, text)
  if key == 'ops':
    text += '|resize(16)'
  option = {key: text}
  if key in ('name', 'stem'):
    option = dict(model=option)
  model = vit_jax.load(path, **option)
  assert marker.exists()
  if carrier == 'safetensors':  # One compilation is enough.
    assert model.predict(photo)[0].name in model.class_names


def test_code_of_the_standard_library_is_not_called(make, tmp_path):
  victim = tmp_path / 'victim'
  path = make('safetensors', 'ops', f'os.mkdir({str(victim)!r})|decode')
  with pytest.raises(UserError, match=r'os\.mkdir'):
    vit_jax.load(path)
  assert not victim.exists()


def test_the_configs_of_torch_models_run_no_code(
  tiny_weights, tmp_path, marker, photo
):
  folder = tmp_path / 'folder'
  huggingface.write(tiny_weights(), folder)
  file = folder / 'preprocessor_config.json'
  config = json.loads(file.read_text())
  config['size'] = dict(shortest_edge='16)|payload.code.op|resize(16')
  file.write_text(json.dumps(config))
  with pytest.raises(UserError, match=r'payload\.code\.op'):
    vit_jax.load(folder).predict(photo)
  file.write_text('{}')
  config = json.loads((folder / 'config.json').read_text())
  for key in ('name', 'model_type', 'architectures', '_target_'):
    changed = config | {key: 'payload.code', 'auto_map': 'payload.code'}
    (folder / 'config.json').write_text(json.dumps(changed))
    try:
      vit_jax.load(folder, ops=OPS, device_ops=DEVICE_OPS)
    except UserError:
      pass
  assert not marker.exists()


@pytest.mark.parametrize(('key', 'text'), TEXTS)
def test_commands_and_recipes_run_no_code(
  key, text, make, marker, photo, capsys
):
  path = str(make('safetensors', key, text))
  assert predict.main([f'--weights={path}', photo]) == 2
  assert 'If you trust' in capsys.readouterr().err
  summary.main([f'--weights={path}'])
  convert.main([path, str(marker.parent / 'x.npz')])
  convert.main([path, str(marker.parent / 'x'), '--format=huggingface'])
  recipe = '--config=evaluate.py:dataset=folder:/data,num_classes=5'
  assert evaluate.main([f'--weights={path}', recipe]) == 2
  argument = f'dataset=folder:/data,num_classes=5,resolution=16,model={path}'
  with contextlib.suppress(ValueError):
    config = finetune.get_config(argument)
    # What a recipe takes from a file would be trusted from then on.
    assert config.model.name == 'vit'
    assert 'payload' not in str(config.input) + str(config.evals)
  assert not marker.exists()


@pytest.mark.parametrize(('key', 'text'), TEXTS[2:])
@pytest.mark.parametrize('carrier', ['safetensors', 'npz'])
def test_a_config_like_a_file_takes_no_code_from_it(
  carrier, key, text, make, marker
):
  config = dict(model=dict(like=str(make(carrier, key, text))))
  with pytest.raises(UserError, match='If you trust'):
    like.complete(config)
  assert not marker.exists()


def test_a_run_is_no_recipe_for_code(make, marker):
  run = make('run', 'name', 'payload.code')
  argument = f'dataset=folder:/data,num_classes=5,resolution=16,model={run}'
  with pytest.raises(ValueError, match=r'payload\.code'):
    finetune.get_config(argument)
  ops = 'normalize.code.op|normalized.op|normalize(-1, 1)'
  run = make('run', 'device_ops', ops)
  config = finetune.get_config(argument)
  assert config.input.device_ops == 'normalize(-1, 1)'


def test_converting_needs_the_users_word_for_a_model(make, marker, capsys):
  path, target = str(make('npz', 'name', 'payload.code')), marker.parent / 'x'
  target = f'{target}.safetensors'
  assert convert.main([path, target]) == 2
  assert 'payload.code' in capsys.readouterr().err and not marker.exists()
  name = "--model={'name': 'payload.code'}"
  assert convert.main([path, target, name]) == 0
  assert marker.exists()
  with pytest.raises(UserError, match='If you trust'):
    vit_jax.load(target)


def test_starting_from_weights_uses_the_model_of_the_config(make, marker):
  path = make('safetensors', 'name', 'payload.code')
  weights = ours.read(path)
  tree, entry = dict(params=weights.params), [dict(weights=str(path))]

  def start(name, entry):
    model = lookup.build('models', weights.model | dict(name='vit'), 'Model')
    return initialize.initialize(
      tree, entry, models=dict(params=model), model_name=name, on_log=str
    )

  with pytest.raises(UserError, match='If you trust'):
    start('vit', entry)
  assert not marker.exists()
  section = weights.model | dict(name='vit')
  start('vit', [dict(weights=str(path), model=section)])
  assert not marker.exists()
  start('payload.code', entry)  # The config names it, so it is the user's.
  assert marker.exists()


def test_weights_made_in_python_are_not_trusted_by_default(
  tiny_weights, marker
):
  weights = tiny_weights()
  changed = dataclasses.replace(weights, preprocess=dict(ops='payload.code.op'))
  with pytest.raises(UserError, match='If you trust'):
    vit_jax.inference.model.Model(changed)
  assert not marker.exists()
  trusted = dataclasses.replace(changed, trusted=frozenset({'ops'}))
  vit_jax.inference.model.Model(trusted)
  assert marker.exists()


@pytest.mark.parametrize(
  ('key', 'text', 'limit'),
  [
    ('ops', 'decode|resize(100000)', 'max_side=4,096'),
    ('ops', 'decode|resize((16, 5000))', 'max_side=4,096'),
    ('ops', "decode|resize_small(16, rounding='9999999')", 'max_side=4,096'),
    ('ops', 'decode|random_crop(8, padding=1000000000)', 'max_side=4,096'),
    ('ops', 'decode(max_scans=3000)|resize(16)', 'choose max_scans'),
    ('ops', '|'.join(['resize(4096)', 'resize(16)'] * 50), 'max_ops=20'),
    ('ops', 'decode|a' + '.a' * 1500, 'max_parts=50'),
    ('ops', 'resize(' + '1+' * 900 + '1)', 'is not a literal'),
    ('ops', "decode|rand_augment('rand-m9-n999999999')", 'may only be'),
    ('ops', 'decode|' + ' ' * 10_000 + 'resize(16)', 'max_length=10,000'),
    ('device_ops', 'random_crop(8, padding=1000000000)', 'max_number=65,536'),
    ('device_ops', 'normalize(mean=0.5, std=1e300)', 'max_number=65,536'),
  ],
)
def test_requests_of_a_file_are_limited(key, text, limit, tiny_weights, photo):
  weights = tiny_weights()
  preprocess = weights.preprocess | {key: text}
  weights = dataclasses.replace(weights, preprocess=preprocess)
  start = time.process_time()
  with pytest.raises(UserError) as e:
    vit_jax.inference.model.Model(weights)
  assert limit in str(e.value)
  assert time.process_time() - start < 5


@pytest.mark.parametrize('recipe', RECIPES)
def test_runs_of_all_recipes_are_within_the_limits(recipe):
  config = importlib.import_module(f'vit_jax.configs.{recipe}').get_config('')
  evaluated = device_ops_language.of_evaluation(config.input.device_ops)
  assert callable(device_ops_language.parse(evaluated))
  for section in config.evals.values():
    assert callable(ops_language.parse(section.ops))


def test_ops_of_files_are_ops_of_this_package():
  assert set(ops_language.FROM_FILES) < set(ops_language.names())
  # It calls ops whose text is among its arguments.
  assert 'multi_crop' not in ops_language.FROM_FILES
  for name in device_ops_language.FROM_FILES:
    assert name in ops_language.names(device_ops_language.FOLDER)


def test_sizes_of_the_users_own_are_not_limited(tiny_weights, tmp_path):
  path = tmp_path / 'x.safetensors'
  ours.write(tiny_weights(), path)
  ops = 'decode|resize(5000)|resize(16)'
  assert vit_jax.load(path, ops=ops).weights.preprocess['ops'] == ops


def test_a_download_runs_no_code(make, tmp_path, photo, monkeypatch):
  victim = tmp_path / 'victim'
  name = f'os.mkdir({str(victim)!r})'
  path = make('safetensors', 'ops', f'decode|{name}')

  class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      pass

  handler = functools.partial(Quiet, directory=tmp_path)
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  environment = dict(os.environ, PYTHONPATH=str(ROOT), no_proxy='127.0.0.1')
  try:
    address = f'http://127.0.0.1:{server.server_port}/{path.name}'
    done = subprocess.run(
      [
        sys.executable,
        '-m',
        'vit_jax',
        'predict',
        f'--weights={address}',
        f'--weights_dir={tmp_path / "downloads"}',
        photo,
      ],
      env=environment,
      capture_output=True,
      text=True,
      timeout=120,
    )
  finally:
    server.shutdown()
    thread.join()
    server.server_close()
  assert (tmp_path / 'downloads' / path.name).exists()
  assert done.returncode == 2
  assert 'os.mkdir' in done.stderr and '--ops=' in done.stderr
  assert not victim.exists()
