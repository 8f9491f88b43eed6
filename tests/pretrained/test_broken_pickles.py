"""Broken pickles of torch, each made from a good one."""

import os
import pathlib
import zipfile

import pytest

from tests.pretrained.broken import collect
from vit_jax.errors import UserError
from vit_jax.pretrained.formats import _pickle, npz, state_dict

CASES, case, broken = collect()


def save(path, change):
  import torch

  content = torch.load(path, weights_only=True)
  torch.save(change(content), path)


def to_float8(content):
  import torch

  return content | {'norm.bias': content['norm.bias'].to(torch.float8_e4m3fn)}


def expanded(content):
  import torch

  return content | {'cls_token': torch.zeros(1).expand(1, 10**6, 10**6)}


def empty(content):
  import torch

  return content | {'cls_token': torch.zeros(1, 0, 10**9)}


for name, change in {
  'names that are numbers': lambda c: {i: v for i, v in enumerate(c.values())},
  'a list': list,
  'names that are numbers below model': lambda c: {'model': {1: 2}},
  'a number': lambda c: 3,
  'types of 8 bits': to_float8,
  'sparse': lambda c: c | {'norm.bias': c['norm.bias'].to_sparse()},
  'complex': lambda c: c | {'norm.bias': c['norm.bias'] * 1j},
  'quantized': lambda c: c | {'norm.bias': c['norm.bias'].to('meta')},
  'integers': lambda c: c | {'norm.bias': c['norm.bias'].long()},
  'a shape that repeats one number': expanded,
  'an empty shape of 10^9': empty,
  'block 10^9': lambda c: c | {f'blocks.{10**9}.norm1.weight': c['norm.bias']},
  'an object': lambda c: c | {'x': pathlib.PurePosixPath('a')},
  'code': lambda c: c | {'x': Code()},
}.items():
  case(name, 'pth', save, change)


class Code:
  def __reduce__(self):
    return (print, ('this must not run',))


for name in (
  *('cls_token', 'pos_embed', 'patch_embed.proj.weight', 'head.weight'),
  *('norm.weight', 'blocks.0.attn.qkv.weight', 'blocks.0.mlp.fc1.weight'),
  'blocks.0.mlp.fc1.bias',
):
  for change, words in (
    (lambda x: x.sum(), 'without axes'),
    (lambda x: x[..., None], 'with one axis more'),
    (lambda x: x[..., :-1], 'one too short'),
    (lambda x: x.reshape(-1), 'flat'),
  ):
    # Patches need not be square, and a vector is flat.
    if (name, words) != ('patch_embed.proj.weight', 'one too short') and (
      words != 'flat' or not name.endswith(('norm.weight', 'bias'))
    ):
      case(
        f'{name} {words}',
        'pth',
        save,
        lambda c, n=name, change=change: c | {n: change(c[n])},
      )


@broken('a deflated bomb', 'pth')
def _(path):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('x/data.pkl', bytes(2**28))


def doublings(number):
  """Returns opcodes for a tuple that holds a tuple twice, and so on."""
  return b'\x80\x02)q\x00' + b'h\x00h\x00\x86q\x00' * number


def write_pickle(path, opcodes, zipped=True, name='data.pkl'):
  if not zipped:
    path.write_bytes(opcodes)
    return
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr(f'archive/{name}', opcodes)
    archive.writestr('archive/version', '3\n')
    archive.writestr('archive/byteorder', 'little')


AS_KEY = b'}h\x00K\x01s.'
for name, opcodes in {
  'a name of 2^60 parts': doublings(60) + AS_KEY,
  'a name of 2^27 parts': (
    doublings(27) + b'}X\x05\x00\x00\x00model}h\x00K\x01ss.'
  ),
  'a list of 2^60 parts that is no name': (
    b'\x80\x02]q\x00' + b'h\x00h\x00\x86q\x00' * 60 + b'.'
  ),
  'a storage of 2^60 parts': (
    doublings(60) + b'(X\x07\x00\x00\x00storageh\x00h\x00tQ.'
  ),
}.items():
  case(name, 'pth', write_pickle, opcodes)
case(
  'a name of 2^60 parts, no archive',
  *('pth', write_pickle, doublings(60) + AS_KEY, False),
)


@broken('a name of 2^60 parts before an archive', 'pth')
def _(path):
  archive = path.read_bytes()
  path.write_bytes(doublings(60) + AS_KEY + archive)


@broken('half of it', 'pth')
def _(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@broken('text', 'pth')
def _(path):
  path.write_text('<html>not found</html>')


@broken('a pipe', 'pth')
def _(path):
  path.unlink()
  os.mkfifo(path)


@pytest.mark.parametrize('name', CASES)
def test_a_broken_file_is_one_error(name, check_refused):
  check_refused(*CASES[name])


def test_a_bomb_is_refused_before_torch_inflates_it(tmp_path):
  pytest.importorskip('torch')
  path = tmp_path / 'x.pth'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('x/data.pkl', bytes(npz.SMALL_BYTES + 1))
  with pytest.raises(UserError, match=r'it inflates from .* to 67,108,865 b'):
    _pickle.read(path)


def test_the_pickles_of_an_old_file_are_read_as_well(tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'x.pth'
  content = {'model': {'a': torch.ones(3)}, 'betas': [(0.9, 0.99)] * 5}
  torch.save(content, path, _use_new_zipfile_serialization=False)
  found = _pickle.read(path)
  assert found['model']['a'].tolist() == [1, 1, 1]
  assert found['betas'] == [(0.9, 0.99)] * 5


def test_the_limits_of_a_pickle_are_named(tmp_path):
  path = tmp_path / 'x.pth'
  write_pickle(path, doublings(20) + AS_KEY, zipped=False)
  with pytest.raises(ValueError, match='than max_objects=1,048,576'):
    _pickle.check(path)
  write_pickle(path, doublings(3) + AS_KEY)
  _pickle.check(path, max_objects=40)
  with pytest.raises(ValueError, match='than max_objects=15'):
    _pickle.check(path, max_objects=15)
  with pytest.raises(ValueError, match='limit is max_bytes=9'):
    _pickle.check(path, max_bytes=9)


@pytest.mark.parametrize(
  ('opcodes', 'name'),
  [
    (b'\x80\x02' + b'N0' * 20 + b'N.', 'data.pkl'),  # Many, one at a time.
    # A list of 20 that is in a pair twice: it grew after it got its number.
    (b'\x80\x02]q\x00(' + b'N' * 20 + b'eh\x00h\x00\x86.', 'data.pkl'),
    (b'\x80\x02(' + b'N' * 40 + b't.', 'DATA.PKL'),  # torch reads it as well.
  ],
)
def test_every_opcode_of_every_pickle_is_counted(opcodes, name, tmp_path):
  path = tmp_path / 'x.pth'
  write_pickle(path, opcodes, name=name)
  _pickle.check(path, max_objects=50)
  with pytest.raises(ValueError, match='than max_objects=35'):
    _pickle.check(path, max_objects=35)


def test_an_empty_tensor_is_named():
  torch = pytest.importorskip('torch')
  with pytest.raises(UserError, match=r'cannot use x: .* shape \(0, 3\) and 0'):
    _pickle.to_numpy(torch.zeros(0, 3), 'x')


def test_tensors_in_the_same_memory_do_not_add_up_to_many_files(tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'x.pth'
  row = torch.zeros(2**20)
  torch.save({str(i): row for i in range(15)}, path)
  assert len(state_dict.read_files(path).arrays) == 15  # 60 MiB
  torch.save({str(i): row for i in range(10**4)}, path)
  with pytest.raises(UserError, match='the limit is max_sharing=4; write'):
    state_dict.read_files(path)
