"""Curves of runs, read from their metrics."""

import json

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.visualize import curves


def write(folder, rows):
  folder.mkdir(parents=True, exist_ok=True)
  lines = (json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(''.join(lines))
  return folder


def run(folder, steps=8):
  rows = []
  for step in range(1, steps + 1):
    rows.append({'step': step, 'train/loss': 1 / step, 'train/top1': 0.5})
    if step % 4 == 0:
      rows[-1] |= {'val/loss': 2 / step, 'val/top1': 0.4, 'val_ema/loss': 0.3}
      rows[-1] |= {'val/top1/cat': 0.1, 'few/5shot': 0.7}
  return write(folder, rows)


@pytest.fixture
def panels(monkeypatch):
  """The axes that are drawn, in order."""
  made, save = [], curves._figure.save

  def spy(figure, path):
    made.extend(figure.axes)
    return save(figure, path)

  monkeypatch.setattr(curves._figure, 'save', spy)
  return made


def lines(axes):
  return {line.get_label(): line for line in axes.get_lines()}


def test_every_metric_is_read_with_its_own_steps(tmp_path):
  write(
    tmp_path,
    [{'step': 1, 'train/loss': 2.5}, {'step': 3, 'train/loss': None, 'a': 1}],
  )
  found = curves.read(tmp_path)
  assert list(found) == ['train/loss', 'a']
  np.testing.assert_array_equal(found['train/loss'][0], [1, 3])
  np.testing.assert_array_equal(found['train/loss'][1], [2.5, np.nan])
  np.testing.assert_array_equal(found['a'], [[3], [1]])
  again = curves.read(tmp_path / 'metrics.jsonl')
  np.testing.assert_array_equal(again['a'], found['a'])


def test_a_panel_has_the_curves_of_training_and_of_each_evaluation(
  panels, tmp_path
):
  path = curves.draw({'mine': run(tmp_path / 'run')}, tmp_path / 'new/x.png')
  assert [p.name for p in path.parent.iterdir()] == ['x.png']
  assert [axes.get_title('left') for axes in panels] == ['loss', 'top1']
  loss, top1 = (lines(axes) for axes in panels)
  assert list(loss) == ['train', 'val', 'val_ema']
  assert list(top1) == ['train', 'val']
  np.testing.assert_allclose(loss['val'].get_xydata(), [[4, 0.5], [8, 0.25]])
  np.testing.assert_allclose(loss['train'].get_ydata(), 1 / np.arange(1, 9))
  assert loss['val'].get_marker() == 'o'
  assert len({line.get_color() for line in loss.values()}) == 3


def test_runs_differ_in_colour_and_their_evaluations_in_dashes(
  panels, tmp_path
):
  runs = {'one': run(tmp_path / '1'), 'two': run(tmp_path / '2', steps=12)}
  curves.draw(runs, tmp_path / 'x.png', metrics=('loss',))
  found = lines(panels[0])
  colors = {name: line.get_color() for name, line in found.items()}
  assert set(colors) == {
    f'{r} {p}' for r in runs for p in ('train', 'val', 'val_ema')
  }
  assert colors['one train'] == colors['one val'] == colors['one val_ema']
  assert colors['two train'] == colors['two val'] != colors['one val']
  dashes = {name: line.get_linestyle() for name, line in found.items()}
  assert dashes['one val'] == dashes['two val'] != dashes['one val_ema']


def test_a_long_training_curve_is_pale_behind_its_running_mean(
  panels, tmp_path
):
  values = np.random.default_rng(0).normal(size=200)
  rows = [{'step': i + 1, 'train/loss': x} for i, x in enumerate(values)]
  curves.draw({'x': write(tmp_path, rows)}, tmp_path / 'x.png')
  pale, mean = panels[0].get_lines()
  np.testing.assert_allclose(pale.get_ydata(), values)
  assert pale.get_alpha() < 0.5 and pale.get_label().startswith('_')
  np.testing.assert_allclose(mean.get_ydata()[100], values[95:106].mean())
  np.testing.assert_allclose(mean.get_ydata()[0], values[:6].mean())
  assert len(mean.get_ydata()) == 200


def test_a_non_finite_value_does_not_spoil_the_mean():
  values = np.float64([1, 2, np.nan, 4, np.nan, np.nan, np.nan, 8])
  found = curves._running_mean(values, 3)
  np.testing.assert_allclose(found, [1.5, 1.5, 3, 4, 4, np.nan, 8, 8])


def test_a_point_without_a_neighbour_has_a_dot(panels, tmp_path):
  values = [1.0, None, 2.0, 3.0, None, 4.0]
  rows = [{'step': i, 'train/loss': x} for i, x in enumerate(values, 1)]
  curves.draw({'x': write(tmp_path, rows)}, tmp_path / 'x.png')
  (line,) = panels[0].get_lines()
  assert line.get_marker() == 'o' and line.get_markevery() == [0, 5]
  one = write(tmp_path / 'one', [{'step': 46, 'train/loss': 0.5}])
  curves.draw({'x': one}, tmp_path / 'x.png')
  assert panels[1].get_lines()[0].get_markevery() == [0]
  curves.draw({'x': run(tmp_path / 'run')}, tmp_path / 'x.png')
  assert panels[2].get_lines()[0].get_marker() == 'None'


def test_curves_without_a_finite_value_and_empty_panels_are_left_out(
  panels, tmp_path
):
  rows = [
    {'step': i, 'train/loss': None, 'train/top1': None, 'val/top1': 0.5}
    for i in (1, 2)
  ]
  curves.draw({'x': write(tmp_path, rows)}, tmp_path / 'x.png')
  assert [axes.get_title('left') for axes in panels] == ['top1']
  assert list(lines(panels[0])) == ['val']
  assert panels[0].get_legend() is None


@pytest.mark.parametrize('last_step', [0, 1, 4, 12, 2021])
def test_steps_are_whole_numbers_and_all_in_view(panels, tmp_path, last_step):
  rows = [{'step': step, 'val/loss': 1.0} for step in range(last_step + 1)]
  curves.draw({'x': write(tmp_path, rows)}, tmp_path / 'x.png')
  ticks = panels[0].get_xticks()
  assert len(set(np.round(ticks))) == len(ticks)
  left, right = panels[0].get_xlim()
  assert left == 0 and right >= max(1, last_step)


def test_a_run_draws_its_own_curves(panels, tmp_path):
  run(tmp_path)
  picture = curves.Picture(None, None, metrics=('5shot',))
  assert picture.draw({}, tmp_path / 'curves.png').exists()
  assert list(lines(panels[0])['few'].get_ydata()) == [0.7, 0.7]


def test_curves_that_cannot_be_drawn_are_reported(tmp_path):
  with pytest.raises(UserError, match=r'no metrics of a run in .*nowhere'):
    curves.draw({'x': tmp_path / 'nowhere'}, tmp_path / 'x.png')
  folder = run(tmp_path / 'run')
  with pytest.raises(UserError, match=r'no finite values of mIoU.*are 5shot, '):
    curves.draw({'x': folder}, tmp_path / 'x.png', metrics=('mIoU',))
  (folder / 'metrics.jsonl').write_text('{"step": 1}\n{"step": \n')
  with pytest.raises(UserError, match=r'metrics.jsonl, line 2: not a row'):
    curves.read(folder)
