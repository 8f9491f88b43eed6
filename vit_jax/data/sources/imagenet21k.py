"""ImageNet-21k from the tar files of image-net.org, one a class.

`winter21_whole.tar.gz` and `fall11_whole.tar` hold `n########.tar` for every
class, and those hold `n########_*.JPEG`. Unpack the outer file alone:

  mkdir winter21
  tar -xf winter21_whole.tar.gz -C winter21 --strip-components=1

Winter 2021 has 19,167 classes (13,153,500 images), Fall 2011 21,841
(14,197,122). Class ids are the places of the sorted WordNet ids, as in
TensorFlow Datasets, so that heads of published models keep their meaning.
"""

import os
import pathlib
import re

import numpy as np
from absl import logging

from vit_jax.data import splits
from vit_jax.data.storage import tar_index
from vit_jax.errors import UserError

_SPLIT = 'full'
_NUM_CLASSES = (21_841, 19_167)


class Source:
  """Examples `{'image': bytes of the file, 'label': int}`, class by class."""

  def __init__(self, split: str, *, data_dir: str):
    """Looks the files of every tar up; slow the first time, then it is kept.

    Args:
      split: `'full'`, or a slice of it: `'full[51200:]'` trains on what
        `'full[:51200]'` does not hold.
      data_dir: the folder that holds `n########.tar`.

    Raises:
      UserError: another split, no such folder, or none or broken tars in it,
        or one that holds the images of another class.
    """
    self._split = splits.parse(split)
    if self._split.name != _SPLIT:
      raise UserError(
        f'imagenet21k has the split {_SPLIT!r}; got {split!r}. Hold some '
        f"images out with slices: '{_SPLIT}[51200:]' and '{_SPLIT}[:51200]'"
      )
    folder = pathlib.Path(data_dir).expanduser()
    if not os.path.isdir(folder):
      raise UserError(
        f'{folder} is not a folder; unpack the outer file alone:\n  mkdir DIR\n'
        f'  tar -xf {folder} -C DIR --strip-components=1\nand set data_dir=DIR'
      )
    try:
      entries = sorted(os.listdir(folder))
    except OSError as e:
      raise UserError(f'{folder} cannot be listed: {e}') from e
    names = [f[:-4] for f in entries if re.fullmatch(r'n\d{8}\.tar', f)]
    if not names:
      raise UserError(
        f'{folder} holds no n########.tar; it has: '
        f'{", ".join(entries[:5]) or "nothing"}'
      )
    self._tars = tar_index.open_all([str(folder / f'{n}.tar') for n in names])
    sizes = [len(tar) for tar in self._tars]
    empty = [n for n, size in zip(names, sizes, strict=True) if not size]
    if empty:
      raise UserError(f'{folder}: no files in {len(empty)} tars: {empty[:10]}')
    wrong = []
    for name, tar in zip(names, self._tars, strict=True):
      first = os.path.basename(tar.name(0))
      if re.match(r'n\d{8}', first) and not first.startswith(name):
        wrong.append(f'{tar.path} has {first}')
    if wrong:
      raise UserError(
        f'{len(wrong)} tars hold the images of another class; were they '
        f'renamed? {"; ".join(wrong[:10])}'
      )
    if len(names) not in _NUM_CLASSES:
      logging.warning(
        '%s has %s tars, neither 21,841 (Fall 2011) nor 19,167 (Winter 2021): '
        'with one missing, the class ids behind it are not those of others',
        folder,
        f'{len(names):,}',
      )
    self.class_names = names
    self.num_classes = len(names)
    self._starts = np.cumsum([0, *sizes])
    self._records = self._split.records(int(self._starts[-1]))

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    label, member = self._place(index)
    return {'image': self._tars[label].read(member), 'label': label}

  def describe(self, index: int) -> str:
    """Returns the path of the tar and the path inside it."""
    label, member = self._place(index)
    return f'{self._tars[label].path}: {self._tars[label].name(member)}'

  def _place(self, index: int) -> tuple[int, int]:
    record = self._records[index]
    label = int(np.searchsorted(self._starts, record, side='right')) - 1
    return label, int(record - self._starts[label])
