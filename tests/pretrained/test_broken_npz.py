"""Broken .npz files, each made from a good one, are one error each."""

import io
import json
import struct
import warnings
import zipfile

import numpy as np
import pytest

from tests.pretrained.broken import NESTED, collect

CASES, case, broken = collect()


def members(path):
  with zipfile.ZipFile(path) as archive:
    return {i.filename: archive.read(i) for i in archive.infolist()}


def rewrite(path, data, comment=b'', method=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, 'w', method) as archive:
    for name, content in data.items():
      archive.writestr(name, content)
    archive.comment = comment


def npy(header, data=b'', version=(1, 0)):
  """Returns an .npy with this header: a text, or what is in one."""
  if not isinstance(header, str):
    header = repr(header)
  text = header.encode() + b'\n'
  size = struct.pack('<H' if version == (1, 0) else '<I', len(text))
  return b'\x93NUMPY' + bytes(version) + size + text + data


def described(shape, descr='<f4', order=False):
  return dict(descr=descr, fortran_order=order, shape=shape)


def with_note(path, note):
  text = note if isinstance(note, str) else json.dumps(note)
  rewrite(path, members(path), b'vit_jax ' + text.encode())


def with_member(path, content, name='head/bias.npy'):
  rewrite(path, members(path) | {name: content})


def with_array(path, array, name='head/bias'):
  buffer = io.BytesIO()
  np.save(buffer, array)
  with_member(path, buffer.getvalue(), f'{name}.npy')


def set_flag(path, offset, value):
  """Sets two bytes of every entry of the central directory and of the heads."""
  data = bytearray(path.read_bytes())
  for mark, at in ((b'PK\x01\x02', offset + 2), (b'PK\x03\x04', offset)):
    start = data.find(mark)
    while start >= 0:
      data[start + at : start + at + 2] = struct.pack('<H', value)
      start = data.find(mark, start + 4)
  path.write_bytes(data)


for name, note in {
  'no JSON in the note': '{"model": ',
  'deep JSON in the note': NESTED[:60_000],
  'a list as the note': [1],
  'a number as the model in the note': {'model': 3},
  'a text as the width in the note': {'model': {'width': 'x'}},
  'a depth of 10^9 in the note': {'model': {'depth': 10**9}},
  'a width of 10^9 in the note': {'model': {'width': 10**9}},
  'a width of 10^400 in the note': {'model': {'width': 10**400}},
  'a patch of 10^8 in the note': {'model': {'patch_size': 10**8}},
  'patches of three sides in the note': {'model': {'patch_size': [8, 8, 8]}},
  'no heads in the note': {'model': {'num_heads': 0}},
  'heads that do not fit in the note': {'model': {'num_heads': 5}},
  'a negative epsilon in the note': {'model': {'norm_epsilon': -1}},
  'an unknown key in the note': {'model': {'hidden': 4}},
  'an unknown model in the note': {'model': {'name': 'resnet'}},
  'a list as the name in the note': {'model': {'name': ['vit']}},
  'an unknown pooling in the note': {'model': {'pooling': 'sum'}},
  'a text as the grid in the note': {'grid': 'ab'},
  'a grid of zeros in the note': {'grid': [0, 0]},
  'a grid of 10^400 in the note': {'grid': [10**400, 1]},
  'an image size of one number in the note': {'preprocess': {'image_size': 3}},
  'ops that are a list in the note': {'preprocess': {'ops': ['decode']}},
  'null as model and an unknown pooling': {'model': None, 'source': 3},
  'a list as preprocessing in the note': {'preprocess': [1]},
  'numbers as class names in the note': {'class_names': [1, 2, 3, 4, 5]},
  'a text as class names in the note': {'class_names': 'abcde'},
}.items():
  case(name, 'npz', with_note, note)
for name, content in {
  'a member that is no array': b'hello',
  'a member that is empty': b'',
  'a pickle as a member': b'\x80\x04K\x01.',
  'a shape of 10^400': npy(described((10**400,))),
  'a shape of 1 TB': npy(described((2**38,)), b'0' * 20),
  'a shape of 4 TB in a long header': npy(described((2**40,)), b'', (2, 0)),
  'bytes behind an array': npy(described((5,)), b'0' * 24),
  'a negative shape': npy(described((-5,)), b'0' * 20),
  'two negative sides': npy(described((-5, -1)), b'0' * 20),
  'a shape of texts': npy(described(('5',)), b'0' * 20),
  'a shape of nothing': npy(described((0,))),
  'Python objects': npy(described((5,), '|O'), b'0' * 40),
  'an unknown dtype': npy(described((5,), '<q9'), b'0' * 20),
  'a dtype that is a number': npy(described((5,), 4), b'0' * 20),
  'complex numbers': npy(described((5,), '<c8'), b'0' * 40),
  'texts': npy(described((5,), '<U1'), b'\0' * 20),
  'dates': npy(described((5,), '<M8[s]'), b'0' * 40),
  'integers': npy(described((5,), '<i8'), b'0' * 40),
  'fields': npy(described((5,), [('a', '<f4')]), b'0' * 20),
  'a header of brackets': npy('(' * 9000),
  'a header of minus signs': npy('-' * 9000),
  'a header that breaks off': npy("{'descr': '<f4"),
  'a header with code': npy("__import__('os').getcwd()"),
  'a header that is too long': npy(' ' * 60_000),
  'a version that nobody knows': npy(described((5,)), b'0' * 20, (9, 9)),
}.items():
  case(name, 'npz', with_member, content)
case('no .npy in a name', 'npz', with_member, b'x', 'README')
case('an escape in a name', 'npz', with_array, np.ones(3), '\x1b[31mred')
case('block 10^9', 'npz', with_array, np.ones(3), f'encoderblock_{10**9}/x')
for number in (10**9, '9' * 5000):
  name = f'Transformer/encoderblock_{number}/LayerNorm_0/scale'
  case(f'{name[:40]} blocks', 'npz', with_array, np.ones(3), name)
for name in ('head/kernel', 'head/bias', 'cls', 'embedding/kernel'):
  case(f'{name} without axes', 'npz', with_array, np.float32(1), name)
  case(f'{name} of 9 axes', 'npz', with_array, np.ones((1,) * 9), name)
case('encrypted', 'npz', set_flag, 6, 1)
case('method 99', 'npz', set_flag, 8, 99)
case('LZMA', 'npz', lambda p: rewrite(p, members(p), b'', zipfile.ZIP_LZMA))


@broken('a bomb', 'npz')
def _(path):
  zeros = npy(described((2**26,)), bytes(2**28))  # 256 MB in 0.3 MB.
  rewrite(path, {'a.npy': zeros}, b'', zipfile.ZIP_DEFLATED)


@broken('a claim of 3 GB of a member', 'npz')
def _(path):
  data = bytearray(path.read_bytes())
  start = data.find(b'PK\x01\x02')
  data[start + 24 : start + 28] = struct.pack('<I', 3 * 2**30)
  path.write_bytes(data)


@broken('half of it', 'npz')
def _(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@broken('an array twice', 'npz')
def _(path):
  content = members(path)['head/bias.npy']
  with zipfile.ZipFile(path, 'a') as archive, warnings.catch_warnings():
    warnings.simplefilter('ignore')  # zipfile says that the name is there.
    archive.writestr('head/bias.npy', content)


@pytest.mark.parametrize('name', CASES)
def test_a_broken_file_is_one_error(name, check_refused):
  check_refused(*CASES[name])
