"""Local copies of remote files, downloaded where the folder lacks them."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.files import MAX_JSON_BYTES
from vit_jax.pretrained import transfer
from vit_jax.pretrained.transfer import FailedError
from vit_jax.printable import printable

FOLDER_VARIABLE = 'VIT_JAX_WEIGHTS'
DOWNLOAD_SECONDS = 4 * 3600
# Hexadecimal digits of each.
_CHECKSUMS = {'sha256': 64, 'md5': 32}
# Of a repository, the first that it has; safetensors need no torch.
_REPOSITORY_WEIGHTS = tuple(
  f'{name}{index}'
  for name in ('model.safetensors', 'pytorch_model.bin')
  for index in ('', '.index.json')
)


@dataclasses.dataclass(frozen=True)
class Remote:
  """A file somewhere else.

  Attributes:
    url: `http(s)://...`, `gs://bucket/path`, or `hf://owner/repository/path`
      for a file on the Hugging Face Hub.
    checksum: `sha256:...` or `md5:...` in hexadecimal, or as much of its start
      as was published; None if nothing was.
    name: of the local file, below the folder of weights; None for the usual.

  Raises:
    UserError: another kind of checksum, or a name outside the folder.
  """

  url: str
  checksum: str | None = None
  name: str | None = None

  def __post_init__(self):
    if self.checksum is not None:
      algorithm, _, digits = self.checksum.partition(':')
      most = _CHECKSUMS.get(algorithm.lower(), 0)
      hexadecimal = re.fullmatch('[0-9a-fA-F]+', digits)
      if not hexadecimal or len(digits) > most:
        raise UserError(
          f'{self.url}: cannot check {self.checksum!r}; expected sha256: or'
          ' md5: and hexadecimal digits'
        )
    name = pathlib.PurePath(self.file_name)
    if (
      name.is_absolute()
      or '..' in name.parts
      or not name.name
      or '\\' in self.file_name
      or not self.file_name.isprintable()
    ):
      raise UserError(
        f'{self.url}: {self.file_name!r} is not a file name below the folder '
        'of weights; give the address of a file'
      )

  @property
  def file_name(self) -> str:
    """Under which the file is kept.

    If no other is given, the last part of the address, without `?...`. On the
    Hub, where most are called 'model.safetensors', the repository's name with
    that suffix.
    """
    if self.name is not None:
      return self.name
    path = self.url
    if path.startswith(('http://', 'https://')):
      path = urllib.parse.unquote(urllib.parse.urlsplit(path).path)
    last = path.rstrip('/').rpartition('/')[2]
    if self.url.startswith('hf://') and last.startswith('model.'):
      repository, _ = transfer.hub_parts(self.url)
      return f'{repository.partition("/")[2]}.{last.removeprefix("model.")}'
    return last


def folder(weights_dir: str | os.PathLike | None = None) -> pathlib.Path:
  """Returns the folder of weights.

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
  download_seconds: float = DOWNLOAD_SECONDS,
) -> pathlib.Path:
  """Returns a local file that is one of the remote ones.

  The first that the folder has, else the first that can be downloaded. A file
  with a known checksum is checked each time.

  Args:
    remotes: files with the same content, the preferred first.
    weights_dir: see `folder`.
    on_log: called with a line of text for every download.
    download_seconds: after which time to give up.

  Raises:
    UserError: a file in the folder is damaged; or no download succeeded, with
      all the reasons, and which file to put where.
  """
  directory = folder(weights_dir)
  deadline = time.monotonic() + download_seconds
  there = [r for r in remotes if (directory / r.file_name).exists()]
  reasons, offline = [], True
  for remote in there or remotes:
    try:
      return _get(remote, directory, deadline, on_log)
    except FailedError as e:
      reasons.append(f'{remote.url}: {e}{_late(deadline, download_seconds)}')
      offline = offline and e.offline
      on_log(f'failed: {e}')
  wanted = ' or '.join(
    f'{remote.file_name} (from {transfer.address(remote.url)})'
    for remote in remotes
  )
  raise UserError(
    f'none of these could be downloaded{", for lack of a connection" * offline}'
    + ':\n  '
    + '\n  '.join(reasons)
    + f'\nTo go on without a network, put {wanted} into {directory}, or name'
    f' the folder that has it in weights_dir or ${FOLDER_VARIABLE}'
  )


def fetch_repository(
  repository: str,
  *,
  weights_dir: str | os.PathLike | None = None,
  on_log: Callable[[str], Any] = print,
  download_seconds: float = DOWNLOAD_SECONDS,
) -> pathlib.Path:
  """Returns a local folder with a model's repository on the Hugging Face Hub.

  config.json, preprocessor_config.json where it exists, and the weights:
  model.safetensors, or else pytorch_model.bin, in one file or in several.

  Args:
    repository: 'owner/name'.
    weights_dir: see `folder`, in which it becomes the folder 'owner--name'.
      Other arguments are those of `fetch`.

  Raises:
    UserError: it could not be downloaded, and which files to put where.
  """
  inside = repository.replace('/', '--')
  directory = folder(weights_dir)
  deadline = time.monotonic() + download_seconds

  def get(name: str, *, optional: bool = False) -> pathlib.Path | None:
    remote = Remote(f'hf://{repository}/{name}', name=f'{inside}/{name}')
    try:
      return _get(remote, directory, deadline, on_log)
    except FailedError as e:
      if optional and e.absent:
        return None
      raise

  try:
    get('config.json')
    names = _REPOSITORY_WEIGHTS
    if there := [n for n in names if (directory / inside / n).exists()]:
      names = there
    else:
      get('preprocessor_config.json', optional=True)
    found = (get(name, optional=True) for name in names)
    path = next(filter(None, found), None)
    if path is None:
      raise FailedError(f'it has none of {", ".join(_REPOSITORY_WEIGHTS)}')
    if path.name.endswith('.index.json'):
      for shard in shards(path):
        get(shard.name)
  except FailedError as e:
    with contextlib.suppress(OSError):  # It stays if files are in it.
      (directory / inside).rmdir()
    web = f'{transfer.hub()}/{repository}'
    reason = (
      f'there is no connection to {transfer.hub()} ({e}).'
      if e.offline
      else f'{e}{_late(deadline, download_seconds)}. Is {web} a public model?'
      ' Others need a token in $HF_TOKEN.'
    )
    # One error for the user: what the network's libraries raised is in it.
    raise UserError(
      f'the repository {repository} of the Hugging Face Hub could not be'
      f' downloaded: {reason} To go on without a network, put its config.json,'
      ' model.safetensors and, if it has one, preprocessor_config.json into'
      f' {directory / inside}, or name the folder that has {inside} in'
      f' weights_dir or ${FOLDER_VARIABLE}'
    ) from None
  return directory / inside


def shards(index: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files that an index of several names, which are beside it.

  Raises:
    UserError: no such index, or names that are not of files beside it.
  """
  table = files.read_json_object(index).get('weight_map')
  if not (
    isinstance(table, dict)
    and table
    and all(
      isinstance(name, str) and pathlib.PurePath(name).name == name
      for name in table.values()
    )
  ):
    raise UserError(
      f'{index} must have a weight_map from names of arrays to names of files'
      ' beside it; if it was downloaded, delete it and try again'
    )
  return [index.parent / name for name in sorted(set(table.values()))]


def _get(
  remote: Remote,
  directory: pathlib.Path,
  deadline: float,
  on_log: Callable[[str], Any],
) -> pathlib.Path:
  """Returns the local file of a remote one, which is downloaded if need be."""
  path = directory / remote.file_name
  if path.exists():
    if wrong := _wrong(path, remote, path.suffix):
      raise UserError(f'{path} is damaged: {wrong}; delete it and try again')
    return path
  on_log(printable(f'downloading {remote.url} to {path}'))
  max_bytes = MAX_JSON_BYTES if path.suffix == '.json' else None
  with files.write_atomically(path) as part:
    transfer.copy(remote.url, part, deadline=deadline, max_bytes=max_bytes)
    if wrong := _wrong(part, remote, path.suffix):
      raise FailedError(wrong)
  return path


def _wrong(path: pathlib.Path, remote: Remote, suffix: str) -> str | None:
  """Returns the problem of a file, or None."""
  if remote.checksum is not None:
    algorithm, _, expected = remote.checksum.lower().partition(':')
    with path.open('rb') as file:
      found = hashlib.file_digest(file, algorithm).hexdigest()
    if not found.startswith(expected):
      return f'its {algorithm} is {found[: len(expected)]}, expected {expected}'
  return transfer.problem(path, suffix)


def _late(deadline: float, download_seconds: float) -> str:
  over = time.monotonic() > deadline
  return f' (download_seconds={download_seconds:g})' if over else ''
