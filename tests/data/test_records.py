"""Records that are read, refused or skipped, through both inputs."""

import builtins
import contextlib
import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from tests.data.tiny_inputs import (
  DATA,
  NUM,
  all_rows,
  make_as_process,
  make_eval,
  make_train,
  take,
)
from vit_jax.data import pipeline, records
from vit_jax.data.sources import synthetic
from vit_jax.errors import UserError


class TestBrokenRecords:
  def test_by_default_the_run_stops_and_names_record_and_cause(self, broken):
    broken.add(3)
    for make in (make_train, make_eval):
      with pytest.raises(UserError) as error:
        list(itertools.islice(make().batches(), 3) if make is make_train else
             make())  # fmt: skip
      assert "synthetic record 3 of 'train'" in str(error.value)
      assert 'OSError: bad checksum' in str(error.value)
      flag = {make_train: 'input', make_eval: 'evals.NAME'}[make]
      assert f'--config.{flag}.on_error=skip' in str(error.value)
      assert isinstance(error.value.__cause__, OSError)

  def test_an_image_that_does_not_decode_is_named_by_its_path(self, tmp_path):
    for i in range(3):
      path = tmp_path / 'train' / 'x' / f'{i}.jpg'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    data = dict(name='image_folder', data_dir=str(tmp_path), split='train')
    with pytest.raises(UserError, match=r'train/x/2\.jpg: '):
      take(make_train(data=data, ops='decode'), 1)
    skipping = make_train(data=data, ops='decode', on_error='skip')
    assert set(all_rows(take(skipping, 2))) == {0, 1}
    assert skipping.skipped == 1
    assert str(path) in skipping.skipped_names[0]

  def test_a_skipped_record_is_replaced_by_the_next_good_one(self, broken):
    whole = all_rows(take(make_train(), 5))
    broken.update({3, 4, 19})
    train_input = make_train(on_error='skip')
    index = all_rows(take(train_input, 5))
    expected = np.where(np.isin(whole, [3, 4]), 5, whole)
    expected = np.where(expected == 19, 0, expected)
    np.testing.assert_array_equal(index, expected)
    assert train_input.skipped == 3
    assert any("record 19 of 'train'" in n for n in train_input.skipped_names)

  def test_skipped_records_are_one_line_each(self, broken, monkeypatch):
    name = 'a\x1b[31m.jpg\nresults of step 9'
    monkeypatch.setattr(synthetic.Source, 'describe', lambda *_: name)
    reader = records.Reader(DATA, '', on_error='skip')
    broken.add(0)
    reader.read_or_blank(0, np.random.default_rng(0))
    [line] = reader.skipped_names
    assert line.startswith(r'a\x1b[31m.jpg\nresults of step 9: ')
    assert '\n' not in line

  def test_skipped_records_do_not_depend_on_threads_or_start(self, broken):
    broken.update({0, 7, 8})
    reference = take(make_train(on_error='skip', num_threads=0), 9)
    threaded = make_train(on_error='skip', num_threads=5)
    late = take(threaded, 4, start_step=5)
    for name in ('index', 'image'):
      np.testing.assert_array_equal(
        all_rows(late, name), all_rows(reference[5:], name)
      )

  def test_evaluation_masks_a_skipped_record_and_counts_it(self, broken):
    broken.update({0, 9})
    one = make_eval(on_error='skip')
    for _ in range(2):  # a second pass finds the same two
      batches = list(one)
      index, mask = all_rows(batches), all_rows(batches, 'mask')
      assert set(index[mask]) == set(range(NUM)) - {0, 9}
      assert mask.sum() == NUM - 2
      assert not all_rows(batches, 'image')[index == 9].any()
      assert one.skipped == 2

  @pytest.mark.parametrize('on_error', ['stop', 'skip'])
  def test_a_record_that_is_done_is_watched_no_longer(self, broken, on_error):
    # An idle thread would be told of, and end the run, as one that hangs.
    one = make_train(num_threads=0, on_error=on_error)
    take(one, 1)
    broken.update(range(0, NUM, 2))
    with contextlib.suppress(UserError):
      take(one, 4)
    assert not one._reader._watchdog._reading

  @pytest.mark.parametrize('make', [make_train, make_eval])
  def test_if_all_is_broken_the_run_stops(self, broken, make):
    broken.update(range(NUM))
    with pytest.raises(UserError, match='20 records in a row cannot be read'):
      make(on_error='skip')

  def test_a_long_stretch_of_broken_records_stops_the_run(self, broken):
    broken.update(range(1, 120))
    data = DATA | dict(num_examples=130)
    with pytest.raises(UserError, match='100 records in a row cannot be read'):
      take(make_train(data=data, on_error='skip'), 20)

  def test_on_error_is_one_of_two_words(self):
    with pytest.raises(UserError, match="'stop' or 'skip'; got 'ignore'"):
      make_train(on_error='ignore')


class TestMistakesInCode:
  """Errors of a source or an op are not those of a record."""

  @pytest.mark.parametrize(
    ('example', 'words'),
    [
      ((1, 2), '`__getitem__` returned a tuple, expected a dict with image'),
      (None, '`__getitem__` returned None, expected a dict with image'),
    ],
  )
  def test_a_source_without_dicts_is_reported(
    self, monkeypatch, example, words
  ):
    monkeypatch.setattr(synthetic.Source, '__getitem__', lambda *_: example)
    with pytest.raises(UserError) as error:
      make_train()
    assert words in str(error.value)
    assert 'mistake in the code' in str(error.value)
    assert 'on_error' not in str(error.value)

  def test_an_op_that_returns_none_is_named(self):
    with pytest.raises(UserError) as error:
      make_train(ops=f'{__name__}.forgets')
    assert "forgets' returned None, expected" in str(error.value)
    assert 'on_error' not in str(error.value)

  @pytest.mark.parametrize('kind', ['KeyError', 'TypeError', 'AttributeError'])
  def test_the_line_that_raised_is_named(self, kind):
    with pytest.raises(UserError) as error:
      make_train(ops=f'{__name__}.raises({kind!r})')
    line = raises.__code__.co_firstlineno + 4
    assert f'{kind}: ' in str(error.value)
    assert f'test_records.py:{line}: correct it' in str(error.value)
    assert 'on_error' not in str(error.value)


def forgets():
  """An op that forgets to return the example."""
  return lambda example, rng: None


def raises(kind):
  """An op that raises an error of this kind."""

  def op(example, rng):
    raise getattr(builtins, kind)('nowhere')

  return op


class TestLabelsOutsideTheClasses:
  @pytest.fixture(autouse=True)
  def _labels(self, monkeypatch):
    def getitem(self, index):
      del self
      image = np.zeros((8, 8, 3), np.uint8)
      return {'image': image, 'label': labels.get(index, 1)}

    monkeypatch.setattr(synthetic.Source, '__getitem__', getitem)
    labels = self.labels = {}

  @pytest.mark.parametrize('make', [make_train, make_eval])
  @pytest.mark.parametrize('label', [5, -2])
  def test_the_run_stops_and_names_label_and_record(self, make, label):
    self.labels[7] = label
    one = make(data=DATA | dict(num_classes=2))
    with pytest.raises(
      UserError, match=rf"record 7 of 'train': label {label} is outside 0\.\.1"
    ):
      list(itertools.islice(one.batches(), 3) if make is make_train else one)

  def test_they_are_skipped_and_counted_like_other_bad_records(self):
    self.labels[7] = 5
    data = DATA | dict(num_classes=2)
    for one in (
      make_train(data=data, on_error='skip'),
      make_eval(data=data, on_error='skip'),
    ):
      training = isinstance(one, pipeline.TrainInput)
      batches = take(one, 3) if training else list(one)
      assert max(all_rows(batches, 'label')) == 1
      assert one.skipped == 1

  def test_minus_one_is_unlabelled_in_evaluation_alone(self):
    self.labels[7] = -1
    data = DATA | dict(num_classes=2)
    assert all_rows(list(make_eval(data=data)), 'label').min() == -1
    with pytest.raises(UserError, match=r'label -1 is outside 0\.\.1'):
      take(make_train(data=data), 3)

  def test_without_a_number_of_classes_every_label_is_read(self):
    self.labels[7] = 5
    one = make_train()
    one.source.num_classes = None
    assert max(all_rows(take(one, 3), 'label')) == 5


class TestExamples:
  def test_the_spec_is_that_of_a_global_batch(self):
    train_input = make_as_process(0, 2)
    (batch,) = take(train_input, 1)
    spec = train_input.element_spec()
    assert set(spec) == {'image', 'label'}
    for name, one in spec.items():
      assert one.shape == (8, *batch[name].shape[1:])
      assert one.dtype == batch[name].dtype
    assert spec['image'].dtype == np.uint8
    assert spec['label'].dtype == np.int32

  def test_the_spec_of_evaluation_has_the_mask(self):
    spec = make_eval().element_spec()
    assert spec['mask'] == jax.ShapeDtypeStruct((8,), np.bool_)

  def test_an_epoch_is_a_fractional_number_of_steps(self):
    assert make_train().steps_per_epoch == 2.5

  def test_text_is_dropped_and_64_bits_become_32(self, monkeypatch):
    extra = dict(
      file_name='a.jpg', key=b'a', area=np.float64(1.5), size=np.int64(7)
    )
    read = synthetic.Source.__getitem__
    monkeypatch.setattr(
      synthetic.Source, '__getitem__', lambda s, i: read(s, i) | extra
    )
    (batch,) = take(make_train(), 1)
    assert set(batch) == {'image', 'label', 'area', 'size', 'index'}
    assert batch['area'].dtype == np.float32
    assert batch['size'].dtype == np.int32

  def test_an_integer_that_32_bits_cannot_hold_is_an_error(self, monkeypatch):
    read = synthetic.Source.__getitem__
    monkeypatch.setattr(
      synthetic.Source, '__getitem__', lambda s, i: read(s, i) | {'id': 2**40}
    )
    with pytest.raises(UserError, match="'id' does not fit into int32"):
      make_train()

  @pytest.mark.parametrize('make', [make_train, make_eval])
  def test_images_of_two_sizes_are_named_with_a_remedy(self, tmp_path, make):
    for i, size in enumerate([(8, 9, 3), (5, 5, 3)]):
      path = tmp_path / 'train' / 'x' / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.zeros(size, np.uint8)).save(path)
    data = dict(name='image_folder', data_dir=str(tmp_path), split='train')
    with pytest.raises(UserError) as error:
      # An evaluation compares some of its examples when it is opened.
      take(make(data=data, ops='decode', on_error='skip'), 1)
    for part in ('0.png: image uint8[8, 9, 3]', '1.png: image uint8[5, 5, 3]'):
      assert part in str(error.value)
    assert 'add an op such as resize(224)' in str(error.value)

  def test_an_image_that_stays_encoded_asks_for_decode(self, tmp_path):
    path = tmp_path / 'train' / 'x' / 'a.png'
    path.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    data = dict(name='image_folder', data_dir=str(tmp_path), split='train')
    with pytest.raises(UserError, match=r'a\.png: .* still encoded\?.*decode'):
      make_train(data=data, ops='')

  def test_wrong_numbers_are_all_named_at_once(self):
    with pytest.raises(UserError) as error:
      make_train(batch_size=0, prefetch=0, num_threads=-1)
    for name in ('batch_size', 'prefetch', 'num_threads'):
      assert f'{name} is an integer of at least' in str(error.value)

  def test_a_seed_other_than_a_number_is_an_error(self):
    with pytest.raises(UserError, match="seed='x': expected a whole number"):
      make_train(seed='x')

  def test_an_unknown_source_is_an_error_with_the_choices(self):
    with pytest.raises(UserError, match='synthetic'):
      make_train(data=dict(name='synthetics', split='train'))
