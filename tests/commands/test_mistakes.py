"""Mistakes in a config or a command end with one message and exit code 2."""

import importlib
import json
import pathlib

import pytest

from vit_jax import main as main_lib


def _message(capsys, *argv):
  """Returns what a command that is a mistake says, on one line."""
  assert main_lib.main([str(arg) for arg in argv]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ')
  return line


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    # Settings that would have no effect, or another one than is meant.
    ('log_every_steps=0', ['log_every_steps=0', 'None']),
    ('log_every_steps=-1', ['log_every_steps=-1']),
    ('checkpoint.every_steps=0', ['config.checkpoint.every_steps=0']),
    ('checkpoint.every_steps=-2', ['config.checkpoint.every_steps=-2']),
    ('checkpoint.every_steps=often', ["'often'", 'whole number']),
    ('checkpoint.every_epochs=-1', ['checkpoint.every_epochs=-1']),
    ('checkpoint.keep_best=test/top1', ["'test/top1'", 'val/']),
    ('checkpoint.keep_best=top1', ["'top1'", 'val/']),
    ('checkpoint.keep_best=val_ema/top1', ["'val_ema/top1'", 'val/']),
    ('checkpoint.keep_best=3', ['keep_best=3', 'text']),
    ('evals.val.every_steps=0', ['config.evals.val.every_steps=0']),
    ('evals.val.every_epochs=-1', ['config.evals.val.every_epochs=-1']),
    ('evals.val.weights=[]', ['config.evals.val.weights=[]', "'params'"]),
    ('evals.val.weights=[3]', ['config.evals.val.weights=[3]']),
    ('evals.val.weights=["params","params"]', ['config.evals.val.weights']),
    ('model.depth=0', ['depth=0', '1 or more']),
    ('model.width=-4', ['width=-4', '1 or more']),
    ('model.width=0', ['width=0', '1 or more']),
    ('model.num_heads=0', ['num_heads=0', '1 or more']),
    ('model.norm_epsilon=-1', ['norm_epsilon=-1', '0 or more']),
    ('model.scan=3', ['scan=3', 'True or False']),
    ('model.like=5', ['config.model.like=5', 'path or the name']),
    ('model.layer_scale=x', ["layer_scale='x'", 'number']),
    ('model.variant=mu/' + '9' * 5000, ['unknown ViT variant', '<patch']),
    ('input.data.split=train[:' + '9' * 5000 + ']', ['not understood']),
    ('input.batch_size=10000', ['10,000', '32 training images', '=32']),
    ('input.num_workers=1000000', ['num_workers=1,000,000', 'core']),
    ('input.device_ops=normalize(0, 0)', ['normalize(0, 0)', 'same']),
    ('input.process_count=2', ["'process_count'"]),
    ('total_steps=3000000000', ['total_steps=3000000000', '2,147,483,647']),
    ('seed=-1', ['seed=-1', '4,294,967,295']),
    ('seed=4294967296', ['seed=4294967296', '4,294,967,295']),
    ('seed=99999999999999999999999', ['4,294,967,295']),
    ('sharding.rules=3', ['rules=3', 'list']),
    ('sharding.min_size=-1', ['min_size=-1', '0 or more']),
    ('optimizer.freeze=[3]', ['freeze', '3 is not a regular expression']),
    ('optimizer.warmup_epochs=-1', ['warmup_epochs=-1']),
    # Names, keys and sections.
    ('objective.name=../../etc/passwd', ["'../../etc/passwd'", 'PYTHONPATH']),
    ('evals.val.name=3', ['3']),
    ('pictures={"../x": {"name": "curves"}}', ['../x']),
    ('pictures={"x/y": {"name": "curves"}}', ["'x/y'", 'letters']),
    ('pictures={3: {"name": "curves"}}', ['pictures']),
    ('evals.val=3', ['evals.val=3', 'section']),
    (
      'evals={"train": {"name": "classification", "ops": "", "data": {'
      '"name": "synthetic", "split": "x", "image_size": 16, '
      '"num_classes": 4}}}',
      ['train/...', 'another name'],
    ),
    ('a..b=3', ['--config.a..b', 'section.key=value']),
    ('lr=0.1', ["unknown key 'lr'", "'optimizer.learning_rate'"]),
    ('batch=3', ["'input.batch_size'"]),
    ('optimizer.lr=0.1', ["unknown key 'lr'", "'learning_rate'"]),
    ('optimizer.wd=0.1', ["unknown key 'wd'", "'weight_decay'"]),
    ('model.drop_path=0.1', ['drop_path', 'stochastic_depth_rate']),
  ],
)
def test_an_impossible_setting_is_refused(
  capsys, recipe, tmp_path, change, words
):
  run = tmp_path / 'run'
  line = _message(
    capsys, f'--config={recipe}', f'--workdir={run}', f'--config.{change}'
  )
  for word in words:
    assert word in line
  assert not (run / 'metrics.jsonl').exists()


@pytest.mark.parametrize('epochs', ['inf', 'nan', '1e999', '-1', '1e300'])
def test_an_invalid_duration_is_refused(capsys, recipe, tmp_path, epochs):
  options = ['--config.total_steps=None', f'--config.total_epochs={epochs}']
  line = _message(
    capsys, f'--config={recipe}', f'--workdir={tmp_path / "run"}', *options
  )
  assert 'total_epochs=' in line


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('def get_config(:\n', ['bad.py:1', 'SyntaxError']),
    ('import no_such_module\n', ['bad.py:1', "'no_such_module'"]),
    ('def get_config(arg=""):\n  return {}["x"]\n', ['bad.py:2', 'KeyError']),
    ('def get_config(arg=""):\n  return widht\n', ['bad.py:2', 'NameError']),
    # A ValueError, but not one that a recipe writes to its user.
    (
      'import json\ndef get_config(arg=""):\n  return json.loads("x")\n',
      ['bad.py:3: the recipe fails with JSONDecodeError'],
    ),
    ('def get_config(arg=""):\n  pass\n', ['NoneType', 'ConfigDict']),
    ('def get_config(arg=""):\n  return [1]\n', ['list', 'ConfigDict']),
    ('def get_config():\n  return {}\n', ["'x'", 'get_config()', "arg=''"]),
    ('get_config = 3\n', ['does not define get_config']),
    ('x = "\0"\n', ['bad.py', 'null bytes']),
  ],
)
def test_a_recipe_that_fails_is_named_with_its_line(
  capsys, tmp_path, text, words
):
  (tmp_path / 'bad.py').write_text(text)
  argv = [f'--config={tmp_path / "bad.py"}:x', f'--workdir={tmp_path / "run"}']
  line = _message(capsys, *argv)
  for word in words:
    assert word in line
  with pytest.raises(ValueError) as error:
    main_lib.main([*argv, '--traceback'])
  if 'SyntaxError' in line or 'KeyError' in line:
    assert isinstance(error.value.__cause__, SyntaxError | KeyError)


def test_a_recipe_is_a_python_file(capsys, tmp_path, recipe):
  (tmp_path / 'recipe.txt').write_text(pathlib.Path(recipe).read_text())
  for path in (tmp_path / 'recipe.txt', tmp_path, 'a\0b.py', ''):
    line = _message(capsys, f'--config={path}', f'--workdir={tmp_path / "run"}')
    assert 'config' in line


def test_a_recipe_may_return_a_dict(tmp_path):
  from vit_jax.commands import _recipe

  (tmp_path / 'a.py').write_text('def get_config(): return dict(seed=3)')
  assert _recipe.load(f'{tmp_path}/a.py').seed == 3


@pytest.mark.parametrize(
  ('argv', 'words'),
  [
    (['--learning_rate=0.1'], ['--config.optimizer.learning_rate=0.1?']),
    (['--lr=0.1'], ['--config.optimizer.learning_rate=0.1?']),
    (['--batch-size=8'], ['--config.input.batch_size=8?']),
    (['--depth=8'], ['--config.model.depth=8?']),
    (['--work_dir=x'], ['--workdir=x?']),
    (['--config.seed', '--traceback_'], ['--config.seed', 'value']),
    (['hello'], ['unknown argument hello']),
    (['--profile=100:105'], ["'100:105'", 'last step', '2']),
    (['--profile=abc'], ["'abc'", 'START:STOP']),
    (['--coordinator=nonsense'], ['--coordinator=nonsense', 'HOST:PORT']),
    (['--coordinator=host:99999'], ['HOST:PORT']),
    (['--heartbeat_seconds=-1'], ['--heartbeat_seconds=-1']),
    (['--num_processes=0'], ['--num_processes=0']),
    (['--process_id=-1'], ['--process_id=-1']),
  ],
)
def test_an_impossible_argument_is_refused(
  capsys, recipe, tmp_path, argv, words
):
  line = _message(
    capsys, f'--config={recipe}', f'--workdir={tmp_path / "run"}', *argv
  )
  for word in words:
    assert word in line


@pytest.mark.parametrize('workdir', ['', ' ', 'a\0b', '~no_such_user_x/run'])
def test_an_invalid_workdir_is_refused(
  capsys, recipe, tmp_path, monkeypatch, workdir
):
  monkeypatch.chdir(tmp_path)
  line = _message(capsys, f'--config={recipe}', f'--workdir={workdir}')
  assert 'workdir' in line
  assert [path.name for path in tmp_path.iterdir()] == ['recipe.py']


def test_an_evaluation_and_a_picture_can_be_switched_off(recipe, tmp_path):
  import vit_jax

  workdir = tmp_path / 'run'
  code = main_lib.main(
    [
      f'--config={recipe}',
      f'--workdir={workdir}',
      "--config.evals.more={'name': 'classification'}",
      '--config.evals.more=None',
      '--config.evals.val=None',
      '--config.pictures.curves=None',
    ]
  )
  assert code == 0
  rows = (workdir / 'metrics.jsonl').read_text().splitlines()
  assert not any(key.startswith('val/') for key in json.loads(rows[-1]))
  assert vit_jax.load(workdir, batch_size=1).num_params > 0


def test_a_metric_to_keep_that_its_evaluation_has_not(capsys, recipe, tmp_path):
  argv = [f'--config={recipe}', f'--workdir={tmp_path / "run"}']
  assert main_lib.main([*argv, '--config.checkpoint.keep_best=val/top2']) == 2
  error = capsys.readouterr().err
  assert "'val/top2'" in error and 'val/top1' in error
  # What was trained is saved: the same command continues from it.
  assert main_lib.main([*argv, '--config.checkpoint.keep_best=val/top1']) == 0
  assert 'this run is finished' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('name', 'argv', 'words'),
  [
    ('predict', ['--weights=x', 'a', '--model={1: 2}'], ['expected a dict']),
    ('predict', ['--weights=x', 'a', '--batch_size=0'], ['--batch_size', '1']),
    ('predict', ['--weights=x', 'a', '--top_k=0'], ['--top_k', '1 or more']),
    ('predict', ['--weights=x', 'a', '--topk=3'], ['--top_k?']),
    ('convert', ['x', 'a\0b.npz'], ['NUL']),
    ('summary', ['CONFIG', '--config.model.depth=-1'], ['depth=-1']),
    ('summary', ['CONFIG', '--config.model.width=0'], ['width=0']),
    ('summary', ['CONFIG', '--config.input=None'], ['input=None', 'a dict']),
    ('summary', ['CONFIG', '--step=3'], ['--step', '--weights']),
    ('sweep', ['CONFIG', '--workdir=x'], ['give each key once']),
    ('sweep', ['CONFIG', '--workdir=', '--sweep.seed=1'], ['workdir']),
    (
      'sweep',
      ['CONFIG', '--workdir=x', '--sweep.seed=1', '--config.evals.val=None'],
      ['config.evals has none'],
    ),
    ('benchmark', ['CONFIG', '--seconds=nan'], ['--seconds=nan']),
    ('benchmark', ['CONFIG', '--config.input=None'], ['input=None']),
    ('aot', ['CONFIG', '--topology=v5e-8', '--slices=0'], ['--slices']),
    ('prepare', ['digits', ''], ["TARGET=''"]),
    ('preflight', ['digits', '--num_threads=0'], ['--num_threads']),
  ],
)
def test_mistakes_of_the_other_commands(
  capsys, recipe, tmp_path, monkeypatch, name, argv, words
):
  monkeypatch.chdir(tmp_path)
  argv = [f'--config={recipe}' if arg == 'CONFIG' else arg for arg in argv]
  module = importlib.import_module(f'vit_jax.commands.{name}')
  assert module.main(argv) == 2
  (line,) = capsys.readouterr().err.splitlines()
  for word in words:
    assert word in line
  assert [path.name for path in tmp_path.iterdir()] == ['recipe.py']


def test_a_target_that_cannot_be_written(capsys, tiny_weights, tmp_path):
  from vit_jax.commands import convert
  from vit_jax.pretrained.formats import vit_jax as ours

  ours.write(tiny_weights(), tmp_path / 'a.safetensors')
  (tmp_path / 'file').write_text('')
  target = tmp_path / 'file' / 'b.safetensors'
  assert convert.main([str(tmp_path / 'a.safetensors'), str(target)]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert str(target) in line
