"""The scripts that start runs, with the commands that they call made up."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / 'scripts'


@pytest.fixture
def fake(tmp_path, monkeypatch):
  """Returns `make(name, script)`, which puts a command into PATH."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
  monkeypatch.chdir(tmp_path)

  def make(name, script):
    path = folder / name
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)

  return make


def _exits_with(fake, *codes):
  """Makes `work`, which ends with one code after the other."""
  cases = '\n'.join(f'{i + 1}) exit {code};;' for i, code in enumerate(codes))
  fake('work', f'echo $@ >>calls; case $(wc -l <calls) in {cases} esac')


def _restart(*command, **environ):
  environ = dict(FIRST_PAUSE='0', LONGEST_PAUSE='0') | environ
  return subprocess.run(
    [SCRIPTS / 'restart.sh', *command],
    env=os.environ | environ,
    capture_output=True,
    text=True,
    timeout=60,
  )


@pytest.mark.parametrize(
  'codes', [(0,), (2,), (130,), (42, 0), (1, 134, 42, 1, 2)]
)
def test_a_run_is_started_until_it_is_done_or_cannot_be(fake, tmp_path, codes):
  _exits_with(fake, *codes)
  done = _restart('work', 'a b', '--flag')
  assert done.returncode == codes[-1]
  calls = (tmp_path / 'calls').read_text().splitlines()
  assert calls == ['a b --flag'] * len(codes)


def test_the_pause_doubles_up_to_the_longest_and_preemption_has_none(fake):
  _exits_with(fake, 1, 1, 1, 42, 1, 0)
  fake('sleep', ':')
  done = _restart('work', FIRST_PAUSE='2', LONGEST_PAUSE='5')
  assert re.findall(r'again in (\d+) s', done.stderr) == ['2', '4', '5', '2']
  assert done.stderr.count('preempted (42), starting again') == 1


def test_it_gives_up_after_many_failures_in_a_row(fake, tmp_path):
  _exits_with(fake, 7, 7, 42, 7, 7, 7, 0)
  done = _restart('work', MOST_FAILURES='3')
  assert done.returncode == 7
  assert '3 failures in a row' in done.stderr
  assert len((tmp_path / 'calls').read_text().splitlines()) == 6


def test_sigterm_lets_the_command_save_and_ends_the_loop(fake, tmp_path):
  fake('work', 'trap "echo saved >>calls; exit 42" TERM; echo on >>calls\n'
       'while :; do sleep 0.05; done')  # fmt: skip
  loop = subprocess.Popen(
    [SCRIPTS / 'restart.sh', 'work'], env=os.environ | {'PID_FILE': 'pid'}
  )
  calls = tmp_path / 'calls'
  end = time.monotonic() + 60
  while not calls.exists() and time.monotonic() < end:
    time.sleep(0.01)
  assert (tmp_path / 'pid').read_text().strip() == str(loop.pid)
  loop.send_signal(signal.SIGTERM)
  assert loop.wait(timeout=60) == 42
  assert calls.read_text().split() == ['on', 'saved']


def test_sigterm_between_two_commands_starts_no_other(fake, tmp_path):
  _exits_with(fake, 42, 0)
  # The loop looks at the clock first, and then starts the command.
  fake('date', '[ ! -e calls ] || kill -TERM "$(cat pid)"; echo 0')
  assert _restart('work', PID_FILE='pid').returncode == 42
  assert len((tmp_path / 'calls').read_text().splitlines()) == 1


def test_without_a_command_it_prints_its_usage():
  done = _restart()
  assert done.returncode == 2
  assert 'scripts/restart.sh python -m vit_jax train' in done.stderr


@pytest.mark.parametrize(
  'code, count, requeued',
  [(0, 0, False), (2, 0, False), (42, 3, True), (1, 3, True), (1, 50, False)],
)
def test_a_slurm_job_goes_back_into_the_queue(
  fake, tmp_path, monkeypatch, code, count, requeued
):
  fake('srun', f'echo "$@" >srun; exit {code}')
  fake('scontrol', 'echo "$@" >scontrol')
  monkeypatch.setenv('SLURM_JOB_ID', '77')
  monkeypatch.setenv('SLURM_RESTART_COUNT', str(count))
  done = subprocess.run(['bash', SCRIPTS / 'slurm.sh', '--config=c.py'])
  assert done.returncode == code
  called = (tmp_path / 'srun').read_text()
  assert called.endswith('python -m vit_jax train --config=c.py\n')
  assert (tmp_path / 'scontrol').exists() == requeued
  if requeued:
    assert (tmp_path / 'scontrol').read_text() == 'requeue 77\n'


def test_a_pod_gets_the_arguments_as_they_were_given(fake, tmp_path):
  fake('gcloud', 'for a in "$@"; do echo "$a"; done >gcloud')
  arguments = ['--config=c.py:S/16', "--config.input.ops=flip_lr|a('b c')"]
  environ = os.environ | {'TPU': 'pod', 'ZONE': 'z'}
  command = [SCRIPTS / 'tpu_pod.sh', 'start', *arguments]
  subprocess.run(command, env=environ, check=True)
  *head, last = (tmp_path / 'gcloud').read_text().splitlines()
  assert head == 'compute tpus tpu-vm ssh pod --zone=z --worker=all'.split()
  # What the shells of the hosts would run.
  fake('nohup', 'shift 5; for a in "$@"; do echo "$a"; done >&3')
  (tmp_path / 'vit_jax').mkdir()
  script = last.removeprefix('--command=').replace('> run.log', '3>args >log')
  subprocess.run(['sh', '-c', f'{script} wait'], check=True)
  assert (tmp_path / 'vit_jax/args').read_text().splitlines() == arguments


def test_a_pod_needs_a_name_and_an_action(fake):
  fake('gcloud', 'exit 9')
  script = SCRIPTS / 'tpu_pod.sh'
  done = subprocess.run([script, 'stop'], capture_output=True, text=True)
  assert done.returncode != 0 and 'set TPU' in done.stderr
  environ = os.environ | {'TPU': 'pod', 'ZONE': 'z'}
  for action in ([], ['begin'], ['start']):
    command = [script, *action]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert 'scripts/tpu_pod.sh start' in done.stderr


_CODES = {(0, 0): 0, (42, 42): 42, (0, 3): 3, (-9, 0): 137}


@pytest.mark.parametrize('codes', _CODES)
def test_a_local_run_ends_with_the_code_of_who_failed(monkeypatch, codes):
  monkeypatch.syspath_prepend(SCRIPTS)
  import launch_local

  code = 'import os, sys; c = int(sys.argv[1]); '
  code += 'os.kill(os.getpid(), -c) if c < 0 else sys.exit(c)'
  workers = [
    subprocess.Popen([sys.executable, '-c', code, str(c)]) for c in codes
  ]
  assert launch_local._wait(workers, 60) == _CODES[codes]


def test_a_local_run_kills_who_outlives_a_failure(monkeypatch):
  monkeypatch.syspath_prepend(SCRIPTS)
  import launch_local

  workers = [subprocess.Popen(['sleep', '600']), subprocess.Popen(['false'])]
  assert launch_local._wait(workers, patience_seconds=0.1) == 1
  assert workers[0].returncode == -signal.SIGKILL
