"""Two runs never write into one workdir; a dead run keeps nobody out."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from vit_jax.checkpoints import workdir_lock
from vit_jax.errors import RunError, UserError
from vit_jax.evaluators import classification
from vit_jax.training import train

ROOT = pathlib.Path(__file__).parents[2]

_OWNER = """
import os, sys, time
from vit_jax.checkpoints import workdir_lock
with workdir_lock.hold(sys.argv[1]):
  if os.fork() == 0:  # A worker that outlives its parent for a while.
    time.sleep(60)
    os._exit(0)
  print('held', flush=True)
  time.sleep(60)
"""


def write_lock(workdir, *, age=0.0, **changes):
  """Leaves a lock as another machine would, refreshed `age` seconds ago."""
  record = dict(
    host='vm-7',
    pid=42,
    since='2026-01-02 03:04:05 UTC',
    machine='another boot',
    process='1',
    token='theirs',
  )
  path = workdir / workdir_lock.NAME
  path.write_text(json.dumps(record | changes))
  os.utime(path, (time.time() - age,) * 2)
  return path


def token(workdir):
  return json.loads((workdir / workdir_lock.NAME).read_text())['token']


def this_process():
  return dict(
    machine=workdir_lock._machine(),
    pid=os.getpid(),
    process=workdir_lock._process_start(os.getpid()),
  )


def assert_is_taken(workdir, **options):
  lines = []
  with workdir_lock.hold(workdir, on_log=lines.append, **options) as confirm:
    assert token(workdir) != 'theirs'
    confirm()
  assert list(workdir.iterdir()) == []
  return lines


def test_a_live_run_keeps_others_out_until_it_is_killed(tmp_path):
  owner = subprocess.Popen(
    [sys.executable, '-c', _OWNER, str(tmp_path)],
    env=dict(os.environ, PYTHONPATH=str(ROOT)),
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  try:
    assert owner.stdout.readline() == 'held\n'
    with pytest.raises(UserError) as error:
      with workdir_lock.hold(tmp_path):
        pass
    assert str(error.value).startswith(
      f'{tmp_path} is in use by process {owner.pid} on {os.uname().nodename} '
      '(since 2'
    )
    owner.kill()
    # Wait for its death, but leave the zombie. Its worker is still alive.
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
    (line,) = assert_is_taken(tmp_path)
    assert f'took over the workdir of process {owner.pid}' in line
  finally:
    os.killpg(owner.pid, signal.SIGKILL)
    owner.wait()


def test_one_process_can_train_in_a_workdir_again_and_again(tmp_path):
  for _ in range(2):
    with pytest.raises(KeyError), workdir_lock.hold(tmp_path / 'new'):
      raise KeyError
  with workdir_lock.hold(tmp_path):
    with pytest.raises(UserError, match=f'process {os.getpid()} on'):
      with workdir_lock.hold(tmp_path):
        pass
    assert (tmp_path / workdir_lock.NAME).exists()


def test_a_process_that_got_the_pid_of_the_owner_is_not_the_owner(tmp_path):
  write_lock(tmp_path, **dict(this_process(), process='1'))
  assert 'which is dead' in assert_is_taken(tmp_path)[0]
  # In a container a restarted run may have the pid that it had before.
  write_lock(tmp_path, **this_process())
  assert 'which is dead' in assert_is_taken(tmp_path)[0]


def test_the_lock_of_a_machine_that_is_gone_is_taken_over(tmp_path):
  write_lock(tmp_path, age=1000)
  (line,) = assert_is_taken(tmp_path)
  assert 'process 42 on vm-7 (since 2026-01-02 03:04:05 UTC)' in line
  # Its clock is ahead of ours; the wait goes by ours alone.
  write_lock(tmp_path, age=-1000)
  started = time.monotonic()
  waiting, taken = assert_is_taken(tmp_path, stale_seconds=1.0)
  assert time.monotonic() - started >= 0.9
  assert 'waiting up to 1 s' in waiting
  assert 'took over' in taken


def test_the_lock_of_a_live_run_on_another_machine_is_respected(tmp_path):
  path = write_lock(tmp_path, age=5)
  stop = threading.Event()

  def refresh():
    while not stop.wait(0.2):
      os.utime(path)

  thread = threading.Thread(target=refresh)
  thread.start()
  try:
    with pytest.raises(
      UserError, match='in use by process 42 on vm-7'
    ) as error:
      with workdir_lock.hold(tmp_path, on_log=lambda line: None):
        pass
  finally:
    stop.set()
    thread.join()
  assert f'start again 180 s later, or delete {path}' in str(error.value)
  assert token(tmp_path) == 'theirs'
  assert list(tmp_path.iterdir()) == [path]


def test_the_owner_refreshes_its_lock(tmp_path):
  path = tmp_path / workdir_lock.NAME
  with workdir_lock.hold(tmp_path, refresh_seconds=0.05):
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 20
    while path.stat().st_mtime == 0 and time.monotonic() < deadline:
      time.sleep(0.05)
    assert path.stat().st_mtime > 0


def test_a_run_that_was_taken_over_ends_and_leaves_the_new_lock(tmp_path):
  with workdir_lock.hold(tmp_path, refresh_seconds=0.05) as confirm:
    confirm()
    path = write_lock(tmp_path, age=1000)
    with pytest.raises(RunError, match='taken over by process 42 on vm-7'):
      confirm()
    time.sleep(0.2)
  assert path.stat().st_mtime < time.time() - 900  # Not refreshed by us.
  assert token(tmp_path) == 'theirs'


@pytest.mark.parametrize('text', ['', '[1]', '{"pid": "x"', '[' * 9000])
def test_a_broken_lock_is_like_one_of_another_machine(tmp_path, text):
  path = write_lock(tmp_path)
  path.write_text(text)
  os.utime(path, (0, 0))
  assert 'unreadable lock' in assert_is_taken(tmp_path)[0]


@pytest.mark.parametrize(
  'changes',
  [
    dict(pid=float('inf')),
    dict(pid=10**30, process=None),
    dict(pid=-1, process=None),
    dict(pid=True),
    dict(pid='1'),
    dict(token=[1]),
  ],
)
def test_a_lock_without_a_sensible_owner_counts_as_broken(tmp_path, changes):
  write_lock(tmp_path, age=1000, **this_process() | changes)
  assert 'unreadable lock' in assert_is_taken(tmp_path)[0]


@pytest.mark.parametrize('kind', ['fifo', 'device', 'large'])
def test_something_else_of_the_name_of_the_lock_is_named(tmp_path, kind):
  path = tmp_path / workdir_lock.NAME
  if kind == 'fifo':
    os.mkfifo(path)
    # Ends an open() that waits, so that a failure is one and does not hang.
    ends_waiting = threading.Timer(
      5, lambda: os.close(os.open(path, os.O_RDWR))
    )
    ends_waiting.daemon = True
    ends_waiting.start()
  elif kind == 'device':
    path.symlink_to('/dev/zero')
  else:
    path.write_text(' ' * 10_001)
  with pytest.raises(UserError, match='not a regular file of at most') as e:
    with workdir_lock.hold(tmp_path, stale_seconds=0):
      pass
  assert str(path) in str(e.value) and 'Remove it' in str(e.value)
  assert list(tmp_path.iterdir()) == [path]
  if kind == 'fifo':
    ends_waiting.cancel()


def test_text_in_a_lock_cannot_control_the_terminal(tmp_path):
  write_lock(tmp_path, age=1000, host='\x1b[31m')
  assert '\x1b' not in assert_is_taken(tmp_path)[0]


def config_of(**changes):
  data = dict(name='synthetic', split='train', image_size=8, num_classes=4)
  config = dict(
    model=dict(name='vit', variant='mu/8', num_classes=4),
    objective=dict(name='supervised'),
    input=dict(data=data, ops='', device_ops='normalize(-1, 1)', batch_size=8),
    optimizer=dict(name='sgd', learning_rate=0.1),
    evals=dict(val=dict(name='classification', data=data, ops='')),
    total_steps=1,
  )
  return config | changes


@pytest.mark.parametrize('total_steps', [0, 1])
def test_no_file_of_a_live_run_is_touched(tmp_path, total_steps):
  with workdir_lock.hold(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
    being_written = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp'
    being_written.mkdir(parents=True)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError, match='is in use by process'):
      train.train(tmp_path, **config_of(total_steps=total_steps))
    assert sorted(tmp_path.rglob('*')) == before
    assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 1}\n'


def test_a_run_that_was_taken_over_saves_nothing(tmp_path, monkeypatch):
  def run(self, params):
    write_lock(tmp_path)
    return {'top1': 0.0}

  monkeypatch.setattr(classification.Evaluator, 'run', run)
  with pytest.raises(RunError, match='taken over by process 42 on vm-7'):
    train.train(tmp_path, **config_of())
  assert list((tmp_path / 'checkpoints').iterdir()) == []
