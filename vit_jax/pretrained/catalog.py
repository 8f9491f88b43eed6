"""One line to load any weights, and one to save them.

weights = catalog.load('augreg-B/16')
catalog.save(weights, 'b16.safetensors')
"""

import difflib
import fnmatch
import inspect
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.pretrained import (
  augreg,
  download,
  google_npz,
  our_files,
  run_weights,
  torch_files,
)
from vit_jax.pretrained.published import PUBLISHED, Published
from vit_jax.pretrained.weights import Weights

# Of `save`: what writes it, and with which arguments.
FORMATS: dict[str, tuple[Callable[..., None], dict[str, str]]] = {
  'vit_jax': (our_files.write, {}),
  'google_npz': (google_npz.write, {'dialect': 'pre_linen'}),
  'big_vision_npz': (google_npz.write, {'dialect': 'big_vision'}),
  'timm': (torch_files.write, {'format': 'timm'}),
  'huggingface': (torch_files.write, {'format': 'huggingface'}),
}


def load(
  source: str | os.PathLike,
  *,
  model: Mapping[str, Any] | None = None,
  weights_dir: str | os.PathLike | None = None,
  on_log: Callable[[str], Any] = print,
  **options,
) -> Weights:
  """Returns weights from wherever they are.

  Args:
    source: the first of these that fits: a path of a file (.npz, .safetensors,
      .pth) or folder (one of our runs, its checkpoints or one of them; a folder
      of timm or Hugging Face with config.json); the name of a file in
      `weights_dir`; a short name such as 'augreg-B/16' (`published.PUBLISHED`
      lists them); the name of any AugReg checkpoint; an address
      (https://, gs://, hf://owner/repository/file).
    model: keys of the model section that win over what is found, such as
      `{'pooling': 'mean'}` or `{'num_classes': None}`; see `given.apply`.
    weights_dir: where weights lie and downloads go; see `download.folder`.
    on_log: is given a line of text for every download.
    **options: of the reader: `step` and `ema` of `run_weights.read`, `grid` of
      `google_npz.read` and `torch_files.read`, `entry` of the latter. Those
      that are None are left out.

  Raises:
    UserError: nothing is found, or it cannot be read; options that the reader
      does not take.
  """
  text = os.fspath(source)
  options = {k: v for k, v in options.items() if v is not None}
  path = pathlib.Path(text).expanduser()
  if not path.exists():
    path = download.folder(weights_dir) / text
  if path.exists():
    return _read(path, model=model, on_log=on_log, **options)
  if '://' in text and not pathlib.PurePath(text).suffix:  # A run far away.
    return _read(text, model=model, on_log=on_log, **options)
  if text in PUBLISHED:
    return _load_published(text, model, weights_dir, on_log, options)
  if '://' in text:
    remote = download.Remote(text)
  elif augreg.is_name(text):
    name = text.removesuffix('.npz')
    remote = download.Remote(f'{augreg.BUCKET}{name}.npz')
  else:
    raise _unknown(text)
  path = download.fetch([remote], weights_dir=weights_dir, on_log=on_log)
  return _read(path, model=model, on_log=on_log, **options)


def names(pattern: str = '*') -> list[str]:
  """Returns the names of published weights that fit an fnmatch pattern."""
  return [n for n in PUBLISHED if fnmatch.fnmatchcase(n, pattern)]


def save(
  weights: Weights, path: str | os.PathLike, *, format: str | None = None
) -> None:
  """Writes weights for us or for others.

  Args:
    weights: what to write.
    path: of a file, or, for 'timm' and 'huggingface', of a folder.
    format: a key of FORMATS. None goes by the suffix: .safetensors is ours, and
      .npz the dialect of Google that the weights were read in, or else the one
      that timm reads.

  Raises:
    UserError: an unknown format, or one that cannot express the model.
  """
  suffix = pathlib.Path(path).suffix
  if format is None and suffix in ('.safetensors', '.npz'):
    write = our_files.write if suffix == '.safetensors' else google_npz.write
    write(weights, path)
    return
  if format not in FORMATS:
    raise UserError(
      f'{os.fspath(path)}: give format= as one of {", ".join(FORMATS)}; got'
      f' {format!r}'
    )
  write, options = FORMATS[format]
  write(weights, path, **options)


def _read(path: str | os.PathLike, **options) -> Weights:
  """Reads what is there, in whatever format it is."""
  suffix, read = pathlib.PurePath(path).suffix, torch_files.read
  if suffix == '.npz':
    read = google_npz.read
  elif suffix == '.safetensors' and our_files.is_ours(path):
    read = our_files.read
  elif '://' in os.fspath(path) or run_weights.is_run(path):
    read = run_weights.read
  takes = inspect.signature(read).parameters
  on_log = options.pop('on_log')
  if 'on_log' in takes:
    options['on_log'] = on_log
  if other := sorted(set(options) - set(takes)):
    raise UserError(
      f'{os.fspath(path)}: {", ".join(other)} has no effect on this kind of'
      f' weights, which takes: {", ".join(list(takes)[1:])}'
    )
  return read(path, **options)


def _load_published(name, model, weights_dir, on_log, options) -> Weights:
  entry = PUBLISHED[name]
  path = download.fetch(entry.remotes, weights_dir=weights_dir, on_log=on_log)
  # What the file does not show, and then what the user wants.
  unseen = {k: entry.model[k] for k in ('activation', 'norm_epsilon')}
  wanted = unseen | dict(model or {})
  weights = _read(path, model=wanted, on_log=on_log, **options)
  _check(path, name, weights, entry, wanted)
  preprocess = weights.preprocess | entry.preprocess
  source = dict(weights.source, name=name, resize=entry.resize)
  return Weights(
    weights.params, weights.model, preprocess, weights.class_names, source
  )


def _check(path, name, weights: Weights, entry: Published, wanted) -> None:
  """Refuses a file that is not of the model that the name stands for."""
  different = [
    f'{key}={weights.model.get(key)!r}, expected {value!r}'
    for key, value in entry.model.items()
    if key not in wanted and weights.model.get(key) != value
  ]
  if different:
    raise UserError(
      f'{os.fspath(path)} is not {name}: {"; ".join(different)}. Move it away'
      ' to have it downloaded, or load it by its path'
    )


def _unknown(text: str) -> UserError:
  is_path = os.sep in text and not text.startswith(tuple(_families()))
  cutoff = 0.8 if is_path else 0.4
  close = difflib.get_close_matches(text, PUBLISHED, n=3, cutoff=cutoff)
  hint = f'; did you mean {" or ".join(close)}?' if close else ''
  if is_path:
    return UserError(f'there is no file or folder {text}{hint}')
  return UserError(
    f'{text!r} is no path that exists and no name of published weights{hint}.'
    f' Names start with {", ".join(_families())}'
  )


def _families() -> list[str]:
  return sorted({name.partition('-')[0] for name in PUBLISHED})
