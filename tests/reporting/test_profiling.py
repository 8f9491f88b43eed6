"""The steps that are traced, and the processes that trace."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax.errors import UserError
from vit_jax.reporting import profiling


@pytest.fixture
def calls(monkeypatch):
  """What the profiler is told, without its 10 MB of traces."""
  calls = []
  monkeypatch.setattr(
    jax.profiler, 'start_trace', lambda path: calls.append(('start', path))
  )
  monkeypatch.setattr(
    jax.profiler, 'stop_trace', lambda: calls.append(('stop',))
  )
  return calls


def _steps(calls, text, first=1, last=6):
  """Runs a loop; returns what happened when, steps as numbers."""
  with profiling.Trace('there', text) as trace:
    for step in range(first, last + 1):
      trace.before(step, jnp.zeros(()))
      calls.append(step)
  return calls


def test_the_steps_from_the_first_to_the_last_are_traced(calls):
  assert _steps(calls, '2:4') == [
    1, ('start', 'there'), 2, 3, 4, ('stop',), 5, 6
  ]  # fmt: skip


def test_a_run_that_ends_within_the_trace_closes_it(calls):
  assert _steps(calls, '6:9')[-3:] == [('start', 'there'), 6, ('stop',)]


def test_a_run_that_continues_behind_the_trace_makes_none(calls):
  assert _steps(calls, '2:3', first=3) == [3, 4, 5, 6]
  calls.clear()
  assert _steps(calls, None) == [1, 2, 3, 4, 5, 6]


def test_only_process_0_traces(calls, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  assert _steps(calls, '2:3') == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize('text', ['2', '4:2', '0:3', 'a:b', '1:2:3'])
def test_an_error_of_other_text_names_the_expected_one(text):
  with pytest.raises(UserError, match="such as '10:12'"):
    raise UserError(profiling.problem(text, 6))


def test_a_run_that_continues_after_the_steps_says_that_it_traces_none(calls):
  lines = []
  options = dict(restored_step=4, on_log=lines.append)
  with profiling.Trace('there', '2:6', **options) as trace:
    for step in (5, 6):
      trace.before(step, jnp.zeros(()))
  assert calls == []
  (line,) = lines
  assert '2:6' in line and 'after step 4' in line
