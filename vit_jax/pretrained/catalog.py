"""Loading of weights from any source, and saving in any format.

weights = catalog.load('augreg-B/16')
catalog.save(weights, 'b16.safetensors')
"""

import dataclasses
import difflib
import fnmatch
import importlib.util
import inspect
import itertools
import os
import pathlib
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax import lookup, suggestions
from vit_jax.errors import UserError
from vit_jax.pretrained import download, transfer
from vit_jax.pretrained.published import (
  AUGREG,
  DEFAULT_TAGS,
  PUBLISHED,
  is_augreg_name,
  timm_name,
  timm_refusal,
)
from vit_jax.pretrained.weights import Weights

_FORMATS = 'pretrained/formats'
# Of these owners 'owner/name' is a repository of the Hub; of others
# 'hf://owner/name' is, so that a mistyped path asks no server.
_HUB_OWNERS = ('facebook', 'google', 'timm')


def load(
  source: str | os.PathLike,
  *,
  format: str | None = None,
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
    model: keys of the model section that replace those found, such as
      `{'pooling': 'mean'}` or `{'num_classes': None}`; see
      `model_section.override`.
    weights_dir: the folder of downloads; see `download.folder`.
    on_log: called with a line of text for every download.
    download_seconds: after which time to give up a download.
    **options: of the reader: `step`, `ema`, `evaluation`, `part` of `run.read`,
      `grid` of `npz.read` and `state_dict.read`, `entry` of the latter. Those
      that are None are left out.

  Raises:
    UserError: nothing is found, or it cannot be read; options that the reader
      does not take.
  """
  text = os.fspath(source)
  if not text:
    raise UserError('the name of the weights is empty; give a path or a name')
  options = {k: v for k, v in options.items() if v is not None}
  options |= dict(model=model, on_log=on_log, format=format)
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
  if is_augreg_name(text):
    return _load_address(
      f'{AUGREG}{text.removesuffix(".npz")}.npz', fetching, options
    )
  text = re.sub('^hf[-_]hub:', '', text)
  if reason := timm_refusal(text):
    raise UserError(
      f'{text!r} is not an existing path, and as a name of timm it cannot be'
      f' loaded: {reason}'
    )
  if name := timm_name(text):
    url = f'hf://timm/{name}/model.safetensors'
    for short, entry in PUBLISHED.items():  # The same weights.
      if any(remote.url == url for remote in entry.remotes):
        return _load_published(short, fetching, options)
    return _load_repository(f'timm/{name}', fetching, options)
  if re.fullmatch(rf'({"|".join(_HUB_OWNERS)})/[\w.-]+', text):
    return _load_repository(text, fetching, options)
  raise _unknown(text)


def names(pattern: str = '*') -> list[str]:
  """Returns the names of published weights that fit an fnmatch pattern.

  First the short ones, then timm's. Upper and lower case are the same.
  """
  known = [*PUBLISHED, *DEFAULT_TAGS]
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
    format: what writes it: a file of `formats/`, or a module of the user's own
      with a dot in its name. None goes by the suffix: .safetensors is ours, and
      .npz the dialect of Google that the weights were read in, or else the one
      that timm reads.
    allow_note_only: of `npz.write`, and for its formats alone: whether an
      activation and epsilon that Google's code does not compute may be written,
      where only our note says so.

  Raises:
    UserError: an unknown format, or one that cannot express the model.
  """
  write = writer(path, format)
  options = dict(allow_note_only=True) if allow_note_only else {}
  if not options.keys() <= inspect.signature(write).parameters.keys():
    raise UserError(
      f"{os.fspath(path)}: allow_note_only is for Google's .npz; leave it out"
    )
  write(weights, path, **options)


def writer(path: str | os.PathLike, format: str | None) -> Callable[..., None]:
  """Returns the `write` of a format; see `save`.

  Raises:
    UserError: an unknown format, or none for the suffix.
  """
  if is_own(format):
    return lookup.find(_FORMATS, format, 'write', trusted=True)
  formats, suffix = _formats('write'), pathlib.Path(path).suffix
  if format is None:  # That which reads such files as well.
    for name in formats.keys() & _formats('read').keys():
      if suffix in getattr(formats[name], 'SUFFIXES', ()):
        format = name
  if format not in formats:
    raise UserError(
      f'{os.fspath(path)}: give format= as one of {", ".join(formats)}; got'
      f' {format!r}'
    )
  return formats[format].write


def is_own(format: str | None) -> bool:
  """Whether a name of a format can be that of a module of the user's own."""
  if not format or format in lookup.names(_FORMATS):
    return False
  return '.' in format or importlib.util.find_spec(format) is not None


def _formats(export: str) -> dict[str, types.ModuleType]:
  """Returns the files of `formats/` that have a function of this name."""
  return {
    name: importlib.import_module(f'vit_jax.pretrained.formats.{name}')
    for name in lookup.names(_FORMATS)
    if export in suggestions.exported(f'{_FORMATS}/{name}')
  }


def _suffixes(export: str = 'read') -> list[str]:
  """Returns those of the files that formats with `export` have, each once."""
  found = (getattr(f, 'SUFFIXES', ()) for f in _formats(export).values())
  return list(dict.fromkeys(itertools.chain.from_iterable(found)))


def _reader(path: str | os.PathLike, format: str | None) -> Callable:
  """Returns the function that reads a path."""
  if format is not None:
    return lookup.find(_FORMATS, format, 'read', trusted=True)
  for found in _formats('matches').values():
    if found.matches(path):
      return found.read
  if os.path.isdir(path):
    names = ', '.join(sorted(os.listdir(path))[:5]) or 'none'
    raise UserError(
      f'{os.fspath(path)} should hold one file of weights, such as'
      f' model.safetensors; there are: {names}'
    )
  suffixes = ', '.join(_suffixes('matches'))
  raise UserError(f'{os.fspath(path)}: expected one of {suffixes}, or format=')


def _read(
  path: str | os.PathLike, *, format, on_log: Callable[[str], Any], **options
) -> Weights:
  """Reads weights in whatever format they are."""
  read = _reader(path, format)
  takes = inspect.signature(read).parameters
  options = {k: v for k, v in options.items() if v is not None or k in takes}
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
  suffixes = _suffixes()
  if options['format'] or remote.file_name.endswith(tuple(suffixes)):
    return _read(download.fetch([remote], **fetching), **options)
  if url.startswith(('http://', 'https://', 'hf://')):
    raise UserError(
      f'{url} is not the address of a file of weights; expected one that ends'
      f' in {", ".join(suffixes)}'
    )
  return _read(url, **options)  # A run in a bucket.


def _load_repository(repository: str, fetching, options) -> Weights:
  path = download.fetch_repository(repository, **fetching)
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
  preprocess = weights.preprocess | entry.preprocess
  source = dict(weights.source, name=name, resize=entry.resize)
  return dataclasses.replace(weights, preprocess=preprocess, source=source)


def _unknown(text: str) -> UserError:
  families = sorted({name.partition('-')[0] for name in PUBLISHED})
  is_path = os.sep in text and not text.startswith(tuple(families))
  # Case and punctuation do not count.
  keys = {_letters(name): name for name in reversed(names())}
  cutoff = 0.8 if is_path else 0.6
  close = difflib.get_close_matches(_letters(text), keys, cutoff=cutoff)
  close = [keys[key] for key in close]
  hint = f'; did you mean {" or ".join(close)}?' if close else ''
  hub = f'hf://{text}' if text.count('/') == 1 else 'hf://owner/name'
  hub = f'for a model of the Hugging Face Hub write {hub}'
  if is_path:
    is_file = text.endswith(tuple(_suffixes()))
    hub = '' if hint or is_file or text.count('/') != 1 else f'; {hub}'
    return UserError(f'there is no file or folder {text}{hint}{hub}')
  tag = ''
  if re.match('(vit|deit)3?_', text):
    tag = (
      " With its tag, any name of timm can be tried: 'vit_....augreg_in21k'."
    )
  return UserError(
    f'{text!r} is neither an existing path nor the name of published weights'
    f'{hint or "."}{tag} vit_jax.list_models() lists the names, which start'
    f' with {", ".join(families)}; {hub}'
  )


def _letters(name: str) -> str:
  return re.sub('[^a-z0-9]', '', name.lower())
