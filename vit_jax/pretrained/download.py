"""Files by their address: found in a folder, or downloaded into it."""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from vit_jax.errors import UserError
from vit_jax.pretrained import files

FOLDER_VARIABLE = 'VIT_JAX_WEIGHTS'
_STORAGE = 'https://storage.googleapis.com/'
_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Remote:
  """A file somewhere else.

  Attributes:
    url: `http(s)://...`, `gs://bucket/path`, or `hf://owner/repository/path`
      for a file on the Hugging Face hub.
    checksum: `sha256:...` or `md5:...` in hexadecimal, or as much of its start
      as was published; None if nothing was.
    name: of the local file, below the folder of weights; None for the usual.
  """

  url: str
  checksum: str | None = None
  name: str | None = None

  @property
  def file_name(self) -> str:
    """Under which the file is kept.

    If no other is given, the last part of the address. On the hub, where most
    are called 'model.safetensors', the repository's name with that suffix.
    """
    if self.name is not None:
      return self.name
    last = self.url.rstrip('/').rpartition('/')[2]
    if self.url.startswith('hf://') and last.startswith('model.'):
      _, repository, *_ = self.url.removeprefix('hf://').split('/')
      return f'{repository}.{last.removeprefix("model.")}'
    return last


def folder(weights_dir: str | os.PathLike | None = None) -> pathlib.Path:
  """Returns where weights lie.

  The argument, else the environment variable VIT_JAX_WEIGHTS, else
  `~/.cache/vit_jax`.
  """
  given = weights_dir or os.environ.get(FOLDER_VARIABLE) or '~/.cache/vit_jax'
  return pathlib.Path(given).expanduser()


def fetch(
  remotes: Sequence[Remote],
  *,
  weights_dir: str | os.PathLike | None = None,
  on_log: Callable[[str], Any] = print,
) -> pathlib.Path:
  """Returns a local file that is one of the remote ones.

  The first that lies in the folder, else the first that can be downloaded. A
  file with a known checksum is checked each time.

  Args:
    remotes: files with the same content, the preferred first.
    weights_dir: see `folder`.
    on_log: is given a line of text for every download.

  Raises:
    UserError: a file in the folder is damaged; or no download succeeded, with
      all the reasons, and which file to put where.
  """
  directory = folder(weights_dir)
  for remote in remotes:
    path = directory / remote.file_name
    if path.exists():
      if wrong := _wrong_checksum(path, remote.checksum):
        raise UserError(f'{path} is damaged: {wrong}; delete it and try again')
      return path
  reasons = []
  for remote in remotes:
    path = directory / remote.file_name
    on_log(f'downloading {remote.url} to {path}')
    try:
      with files.writing(path) as part:
        _download(remote.url, part)
        if wrong := _wrong_checksum(part, remote.checksum):
          raise _FailedError(wrong)
      return path
    except _FailedError as e:
      reasons.append(f'{remote.url}: {e}')
      on_log(f'failed: {e}')
  wanted = ' or '.join(
    f'{remote.file_name} (from {_address(remote.url)})' for remote in remotes
  )
  raise UserError(
    'none of these could be downloaded:\n  '
    + '\n  '.join(reasons)
    + f'\nTo go on without a network, put {wanted} into {directory}, or name'
    f' the folder that has it in weights_dir or ${FOLDER_VARIABLE}'
  )


class _FailedError(Exception):
  """A download that did not succeed; says why in one line."""


def _download(url: str, part: pathlib.Path) -> None:
  scheme = url.partition('://')[0]
  try:
    if scheme == 'hf':
      _download_from_hub(url, part)
    elif scheme in ('http', 'https'):
      _download_by_http(url, part)
    else:
      _download_by_epath(url, part)
  except _FailedError:
    raise
  except Exception as e:
    # From the libraries of whatever service it is; a full disk as well.
    text = ' '.join(str(e).split()) or type(e).__name__
    raise _FailedError(text[:300]) from e


def _download_by_http(url: str, part: pathlib.Path) -> None:
  request = urllib.request.Request(url, headers={'User-Agent': 'vit_jax'})
  with (
    urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response,
    part.open('wb') as file,
  ):
    shutil.copyfileobj(response, file, _CHUNK_BYTES)
    expected = response.headers.get('Content-Length')
    received = file.tell()
  # A connection that is cut looks like the end of the file.
  if expected is not None and received != int(expected):
    raise _FailedError(f'the connection ended after {received} of {expected} B')


def _download_by_epath(url: str, part: pathlib.Path) -> None:
  try:
    source = epath.Path(url).open('rb')
  except ImportError:  # No client of Google's cloud; what is public needs none.
    if not url.startswith('gs://'):
      raise
    _download_by_http(_address(url), part)
    return
  with source, part.open('wb') as target:
    shutil.copyfileobj(source, target, _CHUNK_BYTES)


def _download_from_hub(url: str, part: pathlib.Path) -> None:
  owner, repository, path = url.removeprefix('hf://').split('/', 2)
  try:
    import huggingface_hub
  except ImportError:  # What is public needs no more than this.
    _download_by_http(_address(url), part)
    return
  # Not through the hub's own cache, which would keep a second copy.
  with tempfile.TemporaryDirectory(dir=part.parent) as scratch:
    found = huggingface_hub.hf_hub_download(
      f'{owner}/{repository}', path, endpoint=_hub(), local_dir=scratch
    )
    os.replace(found, part)


def _hub() -> str:
  return os.environ.get('HF_ENDPOINT', 'https://huggingface.co')


def _address(url: str) -> str:
  """Returns what a browser opens."""
  if url.startswith('hf://'):
    owner, repository, path = url.removeprefix('hf://').split('/', 2)
    return f'{_hub()}/{owner}/{repository}/resolve/main/{path}'
  if url.startswith('gs://'):
    return url.replace('gs://', _STORAGE, 1)
  return url


def _wrong_checksum(path: pathlib.Path, checksum: str | None) -> str | None:
  """Returns what is wrong with the file's checksum, or None."""
  if checksum is None:
    return None
  algorithm, _, expected = checksum.partition(':')
  with path.open('rb') as file:
    found = hashlib.file_digest(file, algorithm).hexdigest()
  if found.startswith(expected):
    return None
  return f'its {algorithm} is {found[: len(expected)]}, expected {expected}'
