"""Effect of bad or unusual images on a run; their pixels: ops/test_decode.py.

Either it is read, and then it is not black, or it stops the run with its name,
and with on_error='skip' it is left out and counted.
"""

import io
import itertools
import signal
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from vit_jax.commands import preflight, prepare
from vit_jax.data import ops_language, pipeline, watchdog
from vit_jax.data.sources import synthetic
from vit_jax.errors import UserError

_OPS = 'decode|random_resized_crop(8)|flip_lr'


def _bright(height=40, width=50, mode='RGB'):
  grid = np.random.default_rng(0).integers(150, 256, (height, width, 3))
  return Image.fromarray(grid.astype(np.uint8)).convert(mode)


def _encoded(image, kind, **kwargs):
  file = io.BytesIO()
  image.save(file, kind, **kwargs)
  return file.getvalue()


def _png_16_bit_rgb(level=(200 << 8) + 7):
  """Returns a 16-bit RGB PNG, which Pillow cannot write, of 12 x 10 pixels."""
  row = b'\0' + struct.pack('>H', level) * 3 * 10
  chunks = [
    (b'IHDR', struct.pack('>IIBBBBB', 10, 12, 16, 2, 0, 0, 0)),
    (b'IDAT', zlib.compress(row * 12)),
    (b'IEND', b''),
  ]
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(data))
    + kind
    + data
    + struct.pack('>I', zlib.crc32(kind + data))
    for kind, data in chunks
  )


def _of_12_bits(jpeg):
  """Returns a JPEG whose header says that its samples have 12 bits."""
  precision = jpeg.index(b'\xff\xc0') + 4
  return jpeg[:precision] + b'\x0c' + jpeg[precision + 1 :]


_JPEG = _encoded(_bright(), 'JPEG')
_FINE = {
  'rgb_16_bit.png': _png_16_bit_rgb(),
  '1x1.png': _encoded(_bright(1, 1), 'PNG'),
  '1x10000.png': _encoded(_bright(1, 10_000), 'PNG'),
  '10000x10.jpg': _encoded(_bright(10_000, 10), 'JPEG'),
  'png_called.jpg': _encoded(_bright(), 'PNG'),
  'jpeg_called.png': _JPEG,
  'tail.jpg': _JPEG + b'camera notes',
}
_BAD = {
  'truncated.jpg': (_JPEG[: len(_JPEG) // 2], 'Premature end'),
  'hole.jpg': (_JPEG[:900] + b'\xff\xd9', 'Premature end|Corrupt'),
  '12_bits.jpg': (_of_12_bits(_JPEG), 'a JPEG that cannot be read: .*12'),
  'zero.jpg': (b'', 'the file is empty'),
  'truncated.png': (_encoded(_bright(), 'PNG')[:-400], 'cannot decode'),
  'page.jpg': (b'<html>not found</html>', "begins with b'<html>"),
}


def _folder(tmp_path, name, content):
  """Returns a data section: the image among two good ones."""
  folder = tmp_path / 'train' / 'class'
  folder.mkdir(parents=True)
  (folder / name).write_bytes(content)
  for i in range(2):
    (folder / f'good_{i}.jpg').write_bytes(_JPEG)
  return dict(name='image_folder', split='train', data_dir=str(tmp_path))


def _batches(data, num=3, **kwargs):
  defaults = dict(ops=_OPS, batch_size=3, seed=0)
  one = pipeline.TrainInput(data=data, **(defaults | kwargs))
  batches = one.batches()
  taken = list(itertools.islice(batches, num))
  batches.close()
  return one, taken


@pytest.mark.parametrize('name', _FINE)
def test_an_unusual_image_is_read_and_is_not_black(tmp_path, name):
  data = _folder(tmp_path, name, _FINE[name])
  one, batches = _batches(data)
  position = [one.source.describe(i).endswith(name) for i in range(3)].index(1)
  for batch in batches:
    (row,) = np.flatnonzero(batch['index'] == position)
    assert batch['image'][row].shape == (8, 8, 3)
    assert batch['image'][row].min() > 60
    assert batch['label'][row] == 0
  assert one.skipped == 0


@pytest.mark.parametrize('name', _BAD)
def test_a_bad_image_stops_the_run_or_is_skipped_never_black(tmp_path, name):
  content, words = _BAD[name]
  data = _folder(tmp_path, name, content)
  with pytest.raises(UserError, match=rf'{name}: decode: .*({words})'):
    _batches(data)
  one, batches = _batches(data, on_error='skip')
  assert one.skipped == 1
  assert name in one.skipped_names[0]
  for batch in batches:
    assert batch['image'].min() > 60


def test_of_16_bits_the_high_byte_is_kept_in_colour_too():
  op = ops_language.parse('decode')
  image = op({'image': _png_16_bit_rgb()}, np.random.default_rng(0))['image']
  np.testing.assert_array_equal(image, np.full((12, 10, 3), 200))


def test_an_image_of_10000_by_10000_pixels_is_read():
  data = _encoded(Image.new('1', (10_000, 10_000), 1), 'PNG')
  op = ops_language.parse('decode(1)|resize_small(16)')
  with pytest.warns(Image.DecompressionBombWarning):  # but an error is none
    image = op({'image': data}, np.random.default_rng(0))['image']
  np.testing.assert_array_equal(image, np.full((16, 16, 1), 255))


class _PanicError(BaseException):
  """Like the panics of libraries that are written in Rust: no Exception."""


class TestWorker:
  """A thread that meets its end is reported with its example."""

  @pytest.fixture(params=[0, 2])
  def num_threads(self, request):
    return request.param

  @pytest.mark.parametrize(
    'death',
    [
      MemoryError(),
      StopIteration(),
      RecursionError('deep'),
      SystemExit(0),  # would end the process as if all were well
      _PanicError('index out of bounds'),
    ],
    ids=lambda e: type(e).__name__,
  )
  def test_any_fatal_exception_names_the_record(
    self, monkeypatch, death, num_threads
  ):
    read = synthetic.Source.__getitem__

    def getitem(self, index):
      if index == 13:
        raise death
      return read(self, index)

    monkeypatch.setattr(synthetic.Source, '__getitem__', getitem)
    data = dict(name='synthetic', split='train', num_examples=20)
    kwargs = dict(ops='', batch_size=8, num_threads=num_threads)
    kind = type(death).__name__
    with pytest.raises(UserError, match=f'record 13 of .*{kind}'):
      _batches(data, **kwargs)
    if isinstance(death, MemoryError) or not isinstance(death, Exception):
      # The process fails: to skip the record would hide that.
      with pytest.raises(UserError, match=f'record 13 of .*{kind}'):
        _batches(data, on_error='skip', **kwargs)
      return
    one, batches = _batches(data, on_error='skip', **kwargs)
    assert len(batches) == 3
    assert one.skipped == 1

  @pytest.mark.parametrize('death', [SystemExit(0), _PanicError('index')])
  def test_preflight_and_prepare_report_it_as_a_bad_image(
    self, monkeypatch, tmp_path, capsys, death
  ):
    def getitem(self, index):
      raise death

    monkeypatch.setattr(synthetic.Source, '__getitem__', getitem)
    source = 'synthetic(num_examples=2)'
    assert preflight.main([source]) == 1
    assert f"record 1 of 'train': {death!r}" in capsys.readouterr().out
    assert prepare.main([source, str(tmp_path)]) == 2
    assert f"record 0 of 'train': {death!r}" in capsys.readouterr().err

  @pytest.mark.parametrize('num_threads', [0, 2])
  def test_a_crash_of_the_decoder_leaves_the_name(self, tmp_path, num_threads):
    for number in range(3):
      path = tmp_path / 'train' / 'one' / f'{number}.jpg'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(_encoded(_bright(width=30 + number), 'JPEG'))
    # The first image is read when the input is made.
    program = f"""
import ctypes, simplejpeg
from vit_jax.commands import _cli
from vit_jax.data import pipeline
decode_jpeg = simplejpeg.decode_jpeg
def crash(data, colorspace, **kwargs):
  image = decode_jpeg(data, colorspace, **kwargs)
  return ctypes.string_at(0) if image.shape[1] == 32 else image
simplejpeg.decode_jpeg = crash
def run(argv):
  data = dict(name='image_folder', data_dir={str(tmp_path)!r}, split='train')
  batches = pipeline.TrainInput(
    data=data, ops={_OPS!r}, batch_size=3, seed=0, num_threads={num_threads}
  ).batches()
  next(batches)
_cli.run(run, [])
"""
    done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGSEGV
    crashed = done.stderr.partition('Current thread')[2].partition('\n\n')[0]
    assert f'"<{tmp_path}/train/one/2.jpg>"' in crashed
    assert 'one/1.jpg' not in crashed

  def test_ctrl_c_is_not_skipped_as_a_broken_record(self, monkeypatch):
    def getitem(self, index):
      raise KeyboardInterrupt

    data = dict(name='synthetic', split='train', num_examples=20)
    one = pipeline.TrainInput(
      data=data, ops='', batch_size=8, seed=0, num_threads=0, on_error='skip'
    )
    monkeypatch.setattr(synthetic.Source, '__getitem__', getitem)
    with pytest.raises(KeyboardInterrupt):
      next(one.batches())


class TestHang:
  @pytest.fixture
  def hangs(self, monkeypatch):
    """Makes a record wait, `hangs.add(13)`, until a warning names it."""
    read, told = synthetic.Source.__getitem__, threading.Event()
    numbers, self.messages = set(), []

    def getitem(self, index):
      if index in numbers:
        assert told.wait(30)
      return read(self, index)

    def warning(text, *args):
      self.messages.append(text % args)
      # On a busy machine others may take long, too.
      if any(f"record {n} of 'train'" in self.messages[-1] for n in numbers):
        told.set()

    monkeypatch.setattr(synthetic.Source, '__getitem__', getitem)
    monkeypatch.setattr(watchdog.logging, 'warning', warning)
    monkeypatch.setattr(watchdog, '_LOOK_SECONDS', 0.01)
    return numbers

  def _named(self, number):
    return sum(f"record {number} of 'train'" in text for text in self.messages)

  def test_a_record_whose_name_hangs_too_has_its_number(self, monkeypatch):
    monkeypatch.setattr(watchdog, '_SECONDS_FOR_A_NAME', 0.01)
    dog = watchdog.Watchdog(lambda index: threading.Event().wait())
    assert dog._name(13) == 'record 13'
    dog = watchdog.Watchdog('the name of {}'.format)
    monkeypatch.setattr(watchdog, '_SECONDS_FOR_A_NAME', 30)
    assert dog._name(13) == 'the name of 13'

  @pytest.mark.parametrize(
    ('most', 'step', 'named', 'ended'),
    # The first look may come at any time after the read began.
    [(None, 30, 3, None), (90, 30, 3, 4), (1800, 30, 3, 61), (20, 20, None, 2)],
  )
  def test_a_hanging_read_is_named_and_ended_after_some_looks(
    self, monkeypatch, most, step, named, ended
  ):
    look, events = 0, {}

    class Stop:
      def wait(self, seconds):
        nonlocal look
        assert seconds == step
        look += 1
        return look == 70

    def end(what):
      events['ended'] = look, what
      raise SystemExit(1)

    dog = watchdog.Watchdog('record {}'.format)
    monkeypatch.setattr(
      watchdog.logging,
      'warning',
      lambda _, what: events.setdefault('named', (look, what)),
    )
    monkeypatch.setattr(watchdog, '_end', end)
    with watchdog.most_seconds(most), dog.reading(13):
      if ended:
        with pytest.raises(SystemExit):
          dog._watch(Stop())
      else:
        dog._watch(Stop())
    text = 'the input has been reading one record for {} s: record 13'
    assert events.get('named', (None,))[0] == named
    if named:
      assert events['named'][1] == text.format(60)
    assert events.get('ended', (None,))[0] == ended
    if ended:
      assert events['ended'][1] == text.format(most)

  def test_a_hanging_read_is_named_while_it_lasts(self, hangs):
    data = dict(name='synthetic', split='train', num_examples=20)
    batches = iter(
      pipeline.EvalInput(data=data, ops='', batch_size=20, num_threads=2)
    )
    hangs.add(13)
    batch = next(batches)
    batches.close()
    assert self._named(13) == 1
    assert batch['mask'].all()

  def test_a_hanging_first_read_is_named(self, hangs):
    hangs.add(0)
    _batches(dict(name='synthetic', split='train', num_examples=20), 0, ops='')
    assert self._named(0) == 1

  @pytest.mark.parametrize('command', [preflight, prepare])
  def test_a_hanging_read_is_named_in_preflight_and_prepare(
    self, hangs, tmp_path, command
  ):
    hangs.add(13)
    argv = ['synthetic(num_examples=20)', str(tmp_path)]
    assert command.main(argv[: 1 + (command is prepare)]) == 0
    assert self._named(13) == 1
