"""Broken .safetensors of ours, each made from a good one."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tests.pretrained.broken import NESTED, collect
from vit_jax.errors import UserError
from vit_jax.pretrained.formats import vit_jax as ours

CASES, case, broken = collect()


def header_of(path):
  data = path.read_bytes()
  size = int.from_bytes(data[:8], 'little')
  return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(path, change, claim=None):
  header, data = header_of(path)
  header = change(header)
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  claim = len(text) if claim is None else claim
  path.write_bytes(claim.to_bytes(8, 'little') + text + data)


def with_said(path, said):
  """Writes another entry `vit_jax`: a text, or what changes in the good one."""

  def change(header):
    good = json.loads(header['__metadata__']['vit_jax'])
    text = said if isinstance(said, str) else json.dumps(said(good))
    header['__metadata__']['vit_jax'] = text
    return header

  with_header(path, change)


def with_entry(path, changes):
  def change(header):
    name = next(k for k in header if k != '__metadata__')
    header[name] |= changes
    return header

  with_header(path, change)


def without(key):
  return lambda said: {k: v for k, v in said.items() if k != key}


for name, said in {
  'no JSON': '{"model"',
  'deep JSON': NESTED,
  'a list': '[1]',
  'a text as version': lambda said: said | {'version': 'new'},
  'no version': without('version'),
  'no model': without('model'),
  'no source': without('source'),
  'a list as model': lambda said: said | {'model': [1]},
  'an empty model': lambda said: said | {'model': {}},
  'null as model': lambda said: said | {'model': None},
  'null as preprocessing': lambda said: said | {'preprocess': None},
  'null as width': lambda said: (
    said | {'model': said['model'] | {'width': None}}
  ),
  'depth 10^9': lambda said: said | {'model': said['model'] | {'depth': 10**9}},
  'a source with a list as its name': lambda said: (
    said | {'source': {'name': ['x']}}
  ),
  'a list as source': lambda said: said | {'source': [1]},
  'an object as class names': lambda said: said | {'class_names': {'a': 1}},
  'an image size of text': lambda said: (
    said | {'preprocess': {'image_size': 'ab'}}
  ),
}.items():
  case(f'{name} in vit_jax', 'ours', with_said, said)
for claim in (0, 1, 2**20, 2**31, 2**63, 2**64 - 1):
  case(f'a header of {claim}', 'ours', with_header, lambda h: h, claim)
case('a header of brackets', 'ours', with_header, lambda h: NESTED.encode())
case(
  'a list as metadata', 'ours', with_header, lambda h: h | {'__metadata__': []}
)
for dtype in ('F8_E4M3', 'F8_E5M2', 'F4', 'F6_E2M3', 'NEW', 'C64', ''):
  case(f'dtype {dtype}', 'ours', with_entry, dict(dtype=dtype))
for shape in ([10**12], [2**63], [10**400], [-1], ['5'], 'x', [0, 10**9]):
  case(f'shape {str(shape)[:20]}', 'ours', with_entry, dict(shape=shape))
for offsets in ([0, 2**62], [8, 0], [0], None, [0, 0]):
  changes = dict(data_offsets=offsets)
  case(f'offsets {offsets}', 'ours', with_entry, changes)


@broken('a claim of 10^9 blocks', 'ours')
def _(path):
  with safetensors.safe_open(path, framework='np') as file:
    metadata = file.metadata()
  arrays = safetensors.numpy.load_file(path)
  arrays[f'encoder/block_{10**9}/norm_mlp/scale'] = np.ones(24, np.float32)
  safetensors.numpy.save_file(arrays, path, metadata=metadata)


@broken('integers', 'ours')
def _(path):
  with safetensors.safe_open(path, framework='np') as file:
    metadata = file.metadata()
  arrays = safetensors.numpy.load_file(path)
  arrays['head/bias'] = arrays['head/bias'].astype(np.int32)
  safetensors.numpy.save_file(arrays, path, metadata=metadata)


def test_an_empty_array_is_named(tmp_path):
  arrays = {'a': np.zeros((0, 3), np.float32), 'b': np.ones(2, np.float32)}
  safetensors.numpy.save_file(arrays, tmp_path / 'x.safetensors')
  with pytest.raises(UserError, match=r'x\.safetensors: a \(0, 3\) is empty\.'):
    ours.read_safetensors(tmp_path / 'x.safetensors')


@pytest.mark.parametrize('name', CASES)
def test_a_broken_file_is_one_error(name, check_refused):
  check_refused(*CASES[name])
