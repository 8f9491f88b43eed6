"""Signals: a command ends at once or after saving, never without its code."""

import json
import os
import pathlib
import pty
import signal
import subprocess
import sys

import pytest

from vit_jax.parallel import preemption

ROOT = pathlib.Path(__file__).parents[2]

# For minutes in native code, like a compilation: no handler of Python runs.
_BUSY = 'hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)'

_STARTUP = """
import hashlib, os, signal, sys, threading
def get_config():
  threading.Timer(0.2, os.kill, (os.getpid(), signal.{name})).start()
  {busy}
"""


def start(*argv, path=ROOT, **options):
  return subprocess.Popen(
    [sys.executable, *argv],
    env=dict(os.environ, PYTHONPATH=f'{ROOT}{os.pathsep}{path}'),
    **options,
  )


@pytest.mark.parametrize(
  ('module', 'name', 'code'),
  [
    ('train', 'SIGTERM', 42),
    ('train', 'SIGHUP', 42),
    ('train', 'SIGINT', 130),
    ('sweep', 'SIGTERM', 42),
  ],
)
def test_a_signal_before_the_first_step_ends_the_command_at_once(
  tmp_path, module, name, code
):
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(_STARTUP.format(name=name, busy=_BUSY))
  argv = ['-m', 'vit_jax', module, f'--config={recipe}']
  run = start(*argv, f'--workdir={tmp_path}/run', stderr=subprocess.PIPE)
  try:
    error = run.communicate(timeout=60)[1].decode()
  finally:
    run.kill()
  assert run.returncode == code
  assert f'{name}: ended with nothing to save; the same command' in error
  assert error.count('\n') == 2


def test_a_signal_that_the_parent_ignores_is_ignored(tmp_path):
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(
    'import os, signal, sys\n'
    'def get_config():\n'
    '  os.kill(os.getpid(), signal.SIGHUP)\n'
    '  os.kill(os.getpid(), signal.SIGINT)\n'
    '  sys.exit(7)\n'
  )
  done = subprocess.run(
    ['sh', '-c', 'trap "" HUP INT; exec "$@"', 'sh', sys.executable, '-m']
    + ['vit_jax.main', f'--config={recipe}', f'--workdir={tmp_path}/run'],
    env=dict(os.environ, PYTHONPATH=str(ROOT)),
    timeout=60,
  )
  assert done.returncode == 7


def test_a_signal_to_a_forked_child_ends_the_child_only():
  code = """
import os, signal, sys, time
from vit_jax.parallel import preemption
with preemption.exit_at_once():
  child = os.fork()
  if child == 0:
    time.sleep(60)
  os.kill(child, signal.SIGTERM)
  assert os.waitpid(child, 0)[1] == signal.SIGTERM
  time.sleep(0.3)
  print('alive')
"""
  run = start('-c', code, stdout=subprocess.PIPE)
  assert run.communicate(timeout=60)[0] == b'alive\n'
  assert run.returncode == 0


def test_a_command_has_its_own_handlers_again_afterwards():
  code = """
import signal
from vit_jax.parallel import preemption
before = [signal.getsignal(n) for n in range(1, 32)]
with preemption.exit_at_once():
  assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
  with preemption.watch() as asked:
    assert asked(1) == 0
    signal.raise_signal(signal.SIGTERM)
    assert asked(2) == 42
assert [signal.getsignal(n) for n in range(1, 32)] == before
assert signal.set_wakeup_fd(-1) == -1
"""
  assert start('-c', code).wait(timeout=60) == 0


def test_a_closed_terminal_saves_and_exits_with_42(tmp_path):
  data = dict(name='synthetic', split='train', image_size=8, num_classes=4)
  config = dict(
    model=dict(name='vit', variant='mu/8', num_classes=4),
    objective=dict(name='supervised'),
    input=dict(data=data, ops='', device_ops='normalize(-1, 1)', batch_size=8),
    optimizer=dict(name='sgd', learning_rate=0.1),
    total_steps=10**7,
    log_every_steps=1,
  )
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(
    'import ml_collections\n'
    f'def get_config():\n  return ml_collections.ConfigDict({config})\n'
  )
  # The terminal of a new session: closing it sends SIGHUP to its leader.
  pid, terminal = pty.fork()
  if pid == 0:
    os.environ['PYTHONPATH'] = str(ROOT)
    command = [sys.executable, '-m', 'vit_jax.main', f'--config={recipe}']
    os.execv(command[0], [*command, f'--workdir={tmp_path}/run'])
  try:
    metrics = tmp_path / 'run/metrics.jsonl'
    # The row of a step is written when the next one is under way.
    while not (metrics.exists() and metrics.read_bytes()):
      os.read(terminal, 10_000)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
  except BaseException:
    os.kill(pid, signal.SIGKILL)
    raise
  assert os.waitstatus_to_exitcode(status) == 42
  (step,) = (int(p.name) for p in (tmp_path / 'run/checkpoints').iterdir())
  rows = metrics.read_text().splitlines()
  assert [json.loads(row)['step'] for row in rows] == list(range(1, step + 1))
  assert not (tmp_path / 'run/run.lock').exists()


def test_a_second_ctrl_c_interrupts_at_once(capsys):
  with preemption.watch() as asked:
    assert asked(1) == 0
    signal.raise_signal(signal.SIGINT)
    assert asked(2) == 130
    assert 'press Ctrl-C again to quit' in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)


def test_an_ignored_signal_stays_ignored_in_training():
  before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
  try:
    with preemption.watch() as asked:
      assert asked(1) == 0
      signal.raise_signal(signal.SIGTERM)
      assert asked(2) == 0
  finally:
    signal.signal(signal.SIGTERM, before)
