"""One line to load any weights, and one to save them.

weights = catalog.load('augreg-B/16')
catalog.save(weights, 'b16.safetensors')
"""

import dataclasses
import difflib
import fnmatch
import inspect
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.pretrained import (
  augreg,
  download,
  google_npz,
  our_files,
  run_weights,
  timm_names,
  torch_files,
  torch_storage,
  transfer,
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
# Of these owners 'owner/name' is a repository of the Hub; of others
# 'hf://owner/name' is, so that a mistyped path asks no server.
_HUB_OWNERS = ('facebook', 'google', 'timm')
_SUFFIXES = ('.npz', *torch_storage.SUFFIXES)


def load(
  source: str | os.PathLike,
  *,
  model: Mapping[str, Any] | None = None,
  weights_dir: str | os.PathLike | None = None,
  on_log: Callable[[str], Any] = print,
  download_seconds: float = download.DOWNLOAD_SECONDS,
  **options,
) -> Weights:
  """Returns weights from wherever they are.

  Args:
    source: the first of these that fits: a path of a file (.npz, .safetensors,
      .pth) or folder (one of our runs, its checkpoints or one of them; a folder
      of timm or Hugging Face with config.json); the name of a file in
      `weights_dir`; an address (https://, gs://, hf://owner/repository/file,
      hf://owner/repository); a short name such as 'augreg-B/16' (docs/models.md
      and `names` list them); the name of any AugReg checkpoint; a name of timm
      with or without its tag; 'owner/name' of `_HUB_OWNERS` on the Hub.
    model: keys of the model section that win over what is found, such as
      `{'pooling': 'mean'}` or `{'num_classes': None}`; see `overrides.apply`.
    weights_dir: the folder of downloads; see `download.folder`.
    on_log: called with a line of text for every download.
    download_seconds: after which time to give up a download.
    **options: of the reader: `step`, `ema` and `evaluation` of
      `run_weights.read`, `grid` of `google_npz.read` and `torch_files.read`,
      `entry` of the latter. Those that are None are left out.

  Raises:
    UserError: nothing is found, or it cannot be read; options that the reader
      does not take.
  """
  text = os.fspath(source)
  if not text:
    raise UserError('the name of the weights is empty; give a path or a name')
  options = {k: v for k, v in options.items() if v is not None}
  options |= dict(model=model, on_log=on_log)
  folder = download.folder(weights_dir)
  for path in (pathlib.Path(text).expanduser(), folder / text):
    if os.path.exists(path):
      return _read(path, **options)
  fetching = dict(
    weights_dir=weights_dir, on_log=on_log, download_seconds=download_seconds
  )
  if '://' in text:
    return _load_address(text, fetching, options)
  if text in PUBLISHED:
    return _load_published(text, fetching, options)
  if augreg.is_name(text):
    name = text.removesuffix('.npz')
    remote = download.Remote(f'{augreg.BUCKET}{name}.npz')
    return _read(download.fetch([remote], **fetching), **options)
  text = re.sub('^hf[-_]hub:', '', text)
  if reason := timm_names.refusal(text):
    raise UserError(
      f'{text!r} is not an existing path, and as a name of timm it cannot be'
      f' loaded: {reason}'
    )
  if name := timm_names.resolve(text):
    if short := _published_as(name):
      return _load_published(short, fetching, options)
    return _load_repository(f'timm/{name}', fetching, options)
  if re.fullmatch(rf'({"|".join(_HUB_OWNERS)})/[\w.-]+', text):
    return _load_repository(text, fetching, options)
  raise _unknown(text)


def names(pattern: str = '*') -> list[str]:
  """Returns the names of published weights that fit an fnmatch pattern.

  First the short ones, then timm's. Upper and lower case are the same.
  """
  known = [*PUBLISHED, *timm_names.DEFAULT_TAGS]
  pattern = pattern.lower()
  return [name for name in known if fnmatch.fnmatchcase(name.lower(), pattern)]


def save(
  weights: Weights,
  path: str | os.PathLike,
  *,
  format: str | None = None,
  allow_note_only: bool = False,
) -> None:
  """Writes weights for us or for others.

  Args:
    weights: what to write.
    path: of a file, or, for 'timm' and 'huggingface', of a folder.
    format: a key of FORMATS. None goes by the suffix: .safetensors is ours, and
      .npz the dialect of Google that the weights were read in, or else the one
      that timm reads.
    allow_note_only: of `google_npz.write`, and for its formats alone: whether
      an activation and epsilon that Google's code does not compute may be
      written, where only our note says so.

  Raises:
    UserError: an unknown format, or one that cannot express the model.
  """
  suffix = pathlib.Path(path).suffix
  if format is None and suffix in ('.safetensors', '.npz'):
    write = our_files.write if suffix == '.safetensors' else google_npz.write
    options = {}
  elif format in FORMATS:
    write, options = FORMATS[format]
  else:
    raise UserError(
      f'{os.fspath(path)}: give format= as one of {", ".join(FORMATS)}; got'
      f' {format!r}'
    )
  if allow_note_only and write is not google_npz.write:
    raise UserError(
      f"{os.fspath(path)}: allow_note_only is for Google's .npz; leave it out"
    )
  if allow_note_only:
    options = options | dict(allow_note_only=True)
  write(weights, path, **options)


def _read(path: str | os.PathLike, **options) -> Weights:
  """Reads what is there, in whatever format it is."""
  suffix, read = pathlib.PurePath(path).suffix, torch_files.read
  is_file = os.path.isfile(path)
  if suffix == '.npz' and is_file:
    read = google_npz.read
  elif suffix == '.safetensors' and is_file and our_files.is_ours(path):
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


def _load_address(url: str, fetching, options) -> Weights:
  page = re.fullmatch(rf'{re.escape(transfer.hub())}/([^/?#]+/[^/?#]+)/?', url)
  if page:  # What a browser shows of a repository.
    url = f'hf://{page[1]}'
  if url.startswith('hf://'):
    repository, file = transfer.hub_parts(url)
    if file is None:
      return _load_repository(repository, fetching, options)
  remote = download.Remote(url)
  is_file = pathlib.PurePath(remote.file_name).suffix in _SUFFIXES
  if is_file:
    return _read(download.fetch([remote], **fetching), **options)
  if url.startswith(('http://', 'https://', 'hf://')):
    raise UserError(
      f'{url} is not the address of a file of weights; expected one that ends'
      f' in {", ".join(_SUFFIXES)}'
    )
  return _read(url, **options)  # A run in a bucket.


def _load_repository(repository: str, fetching, options) -> Weights:
  path = download.fetch_repository(repository, **fetching)
  ours = path / 'model.safetensors'
  if ours.exists() and our_files.is_ours(ours):
    return _read(ours, **options)
  weights = _read(path, **options)
  if not repository.startswith('timm/'):
    return weights
  # With a name the 1,000 classes are known to be those of ImageNet.
  source = dict(weights.source, name=repository)
  return dataclasses.replace(weights, source=source)


def _load_published(name, fetching, options) -> Weights:
  entry = PUBLISHED[name]
  path = download.fetch(entry.remotes, **fetching)
  # What the file does not show, and then what the user wants.
  fields = lookup.model_fields(entry.model, 'unseen')
  unseen = {k: entry.model[k] for k in fields}
  wanted = unseen | dict(options['model'] or {})
  weights = _read(path, **options | dict(model=wanted))
  _check(path, name, weights, entry, wanted)
  preprocess = weights.preprocess | entry.preprocess
  source = dict(weights.source, name=name, resize=entry.resize)
  return dataclasses.replace(weights, preprocess=preprocess, source=source)


def _published_as(timm_name: str) -> str | None:
  """Returns the short name of the same weights, if there is one."""
  url = f'hf://timm/{timm_name}/model.safetensors'
  for name, entry in PUBLISHED.items():
    if any(remote.url == url for remote in entry.remotes):
      return name
  return None


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
  close = _close(text, 0.8 if is_path else 0.6)
  hint = f'; did you mean {" or ".join(close)}?' if close else ''
  hub = f'hf://{text}' if text.count('/') == 1 else 'hf://owner/name'
  hub = f'for a model of the Hugging Face Hub write {hub}'
  if is_path:
    is_file = pathlib.PurePath(text).suffix in _SUFFIXES
    hub = (
      f'; {hub}' if text.count('/') == 1 and not is_file and not hint else ''
    )
    return UserError(f'there is no file or folder {text}{hint}{hub}')
  tag = ''
  if re.match('(vit|deit)3?_', text):
    tag = (
      " With its tag, any name of timm can be tried: 'vit_....augreg_in21k'."
    )
  return UserError(
    f'{text!r} is neither an existing path nor the name of published weights'
    f'{hint or "."}{tag} vit_jax.list_models() lists the names, which start'
    f' with {", ".join(_families())}; {hub}'
  )


def _close(text: str, cutoff: float) -> list[str]:
  """Returns names that differ little, whatever their case and punctuation."""
  keys: dict[str, str] = {}
  for name in names():
    keys.setdefault(_letters(name), name)
  close = difflib.get_close_matches(_letters(text), keys, n=3, cutoff=cutoff)
  return [keys[key] for key in close]


def _letters(name: str) -> str:
  return re.sub('[^a-z0-9]', '', name.lower())


def _families() -> list[str]:
  return sorted({name.partition('-')[0] for name in PUBLISHED})
