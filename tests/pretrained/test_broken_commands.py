"""Broken weight files on the command line: exit code 2 and one message."""

import json
import os
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from vit_jax.commands import convert, predict, summary


def bomb(folder):
  """Writes an .npz of 0.1 MB whose array has 80 MB."""
  with zipfile.ZipFile(folder / 'x.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
    with archive.open('a.npy', 'w') as file:
      header = dict(descr='<f4', fortran_order=False, shape=(20 * 2**20,))
      np.lib.format.write_array_header_1_0(file, header)
      for _ in range(80):
        file.write(bytes(2**20))
  return folder / 'x.npz'


def pipe(folder):
  """Writes a folder as of Hugging Face, whose config is a pipe."""
  safetensors.numpy.save_file({'a': np.zeros(1)}, folder / 'model.safetensors')
  os.mkfifo(folder / 'config.json')
  return folder


def claim(folder):
  (folder / 'x.safetensors').write_bytes((2**63).to_bytes(8, 'little') + b'{}')
  return folder / 'x.safetensors'


def deep(folder):
  text = json.dumps({'__metadata__': {'vit_jax': '[' * 100_000}}).encode()
  path = folder / 'x.safetensors'
  path.write_bytes(len(text).to_bytes(8, 'little') + text)
  return path


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (bomb, 'max_ratio=20'),
    (pipe, 'it is a pipe'),
    (claim, 'header too large'),
    (deep, 'max_nesting=64'),
  ],
)
def test_every_command_ends_with_two_and_says_why(
  make, words, tmp_path, capsys
):
  path = str(make(tmp_path))
  Image.new('RGB', (9, 9)).save(tmp_path / 'image.png')
  for command, arguments in (
    (convert, [path, str(tmp_path / 'out.safetensors')]),
    (predict, [f'--weights={path}', str(tmp_path / 'image.png')]),
    (summary, [f'--weights={path}']),
  ):
    assert command.main(arguments) == 2, command
    error = capsys.readouterr().err
    assert error.startswith('error: ') and words in error
    assert error.count('\n') == 1
