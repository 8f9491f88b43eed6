"""Layout: no words of a picture overlap other words or leave the picture."""

import itertools

import jax
import numpy as np
import pytest
from matplotlib import image as matplotlib_image

from vit_jax.parallel import mesh as mesh_lib
from vit_jax.visualize import _figure, filters, position_similarity, predictions

NAMES = ['a', 'a very long name of a class that fits nowhere', '$100$']


def _predictions(path, count, columns):
  images = np.zeros((20, 8, 12, 3), np.uint8)
  np.savez(
    path.with_suffix('.npz'),
    test_images=images,
    test_labels=np.arange(20, dtype=np.int32) % 3,
    class_names=NAMES,
  )
  picture = predictions.Picture(
    lambda params, batch: {'logits': jax.nn.one_hot(batch['label'] + 1, 3)},
    mesh_lib.make_mesh(),
    data=dict(name='arrays', path=str(path.with_suffix('.npz')), split='test'),
    ops='',
    count=count,
    columns=columns,
  )
  picture.draw({}, path)


KERNEL = np.random.default_rng(0).normal(size=(4, 2, 3, 30))
TABLE = np.random.default_rng(0).normal(size=(14, 9, 8))


@pytest.mark.parametrize(
  'draw',
  [
    lambda path: _predictions(path, 1, 9),
    lambda path: _predictions(path, 11, 4),
    lambda path: filters.Picture(count=2).plot(KERNEL, path),
    lambda path: filters.Picture(count=20, columns=7).plot(KERNEL, path),
    lambda path: position_similarity.Picture().plot(TABLE[:2, :2], path),
    lambda path: position_similarity.Picture().plot(TABLE, path),
  ],
)
def test_words_do_not_overlap(draw, tmp_path, monkeypatch):
  drawn, save = [], _figure.save
  monkeypatch.setattr(
    _figure, 'save', lambda figure, path: drawn.append((figure, path))
  )
  draw(tmp_path / 'x.png')
  figure, path = drawn[0]
  save(figure, path)
  figure.draw_without_rendering()
  texts = [figure._suptitle]
  for axes in figure.axes:
    texts += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
    for axis in (axes.xaxis, axes.yaxis):
      low, high = sorted(axis.get_view_interval())
      ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
      texts += [label for place, label in ticks if low <= place <= high]
  texts = [x for x in texts if x.get_text() and x.get_visible()]
  # An edge may touch another one.
  boxes = [x.get_window_extent().padded(-0.5) for x in texts]
  assert len(boxes) > 2
  for (one, a), (other, b) in itertools.combinations(
    zip(texts, boxes, strict=True), 2
  ):
    assert not a.overlaps(b), (one.get_text(), other.get_text())
  height, width = matplotlib_image.imread(path).shape[:2]
  assert width > max(x.x1 for x in boxes) - min(x.x0 for x in boxes)
  assert height > max(x.y1 for x in boxes) - min(x.y0 for x in boxes)
