"""Download of one file within limits of time, and checks that it is whole.

`http(s)://` and, where no client of Google's cloud is installed, public
`gs://` files are read with the standard library, `hf://` files through the
Hub's web addresses, and everything else by epath. Nothing is tried twice.
"""

import contextlib
import errno
import os
import pathlib
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from typing import Any

from etils import epath

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.printable import printable

ANSWER_SECONDS = 30  # To connect, to start an answer, between two packets.
_STORAGE = 'https://storage.googleapis.com/'
_CHUNK_BYTES = 1 << 20
PICKLES = ('.pth', '.pt', '.bin', '.ckpt', '.tar')  # Of torch.
_ZIP, _PICKLE = b'PK', b'\x80'
_TRUE = ('1', 'on', 'yes', 'true')


class FailedError(Exception):
  """A transfer that did not succeed; says why in one line.

  Attributes:
    absent: whether the server answered that it has no such file.
    offline: whether there was no connection to the server.
  """

  def __init__(self, text: str, *, absent: bool = False, offline: bool = False):
    super().__init__(printable(text))  # Some of it is the server's.
    self.absent = absent
    self.offline = offline


def copy(
  url: str,
  part: pathlib.Path,
  *,
  deadline: float,
  max_bytes: int | None = None,
) -> None:
  """Writes the content of an address to a file.

  `deadline` is on the clock of `time.monotonic`; `part` is replaced.

  Raises:
    FailedError: no complete answer; also for a full disk.
  """
  seconds = max(0.01, min(ANSWER_SECONDS, deadline - time.monotonic()))
  try:
    with _opened(url, seconds) as source, part.open('wb') as target:
      length = getattr(source, 'headers', {}).get('Content-Length')
      expected = None if length is None else int(length)
      read = getattr(source, 'read1', source.read)  # One packet, not a chunk.
      while chunk := read(_CHUNK_BYTES):
        target.write(chunk)
        if time.monotonic() > deadline:
          raise FailedError(
            f'timed out after {target.tell():,} bytes'
            + (f' of {expected:,}' if expected is not None else '')
          )
        if max_bytes is not None and target.tell() > max_bytes:
          raise FailedError(f'it has more than {max_bytes:,} bytes')
      received = target.tell()
  except (FailedError, UserError):
    raise
  except urllib.error.HTTPError as e:
    with e:
      raise FailedError(str(e), absent=e.code in (404, 410)) from e
  except Exception as e:
    # From the libraries of whatever service it is; a full disk as well.
    reason = e.reason if isinstance(e, urllib.error.URLError) else e
    text = ' '.join(str(reason).split()) or type(e).__name__
    if isinstance(reason, TimeoutError):
      text = f'no answer within {seconds:.3g} s'
    # Not every timeout: a server may also be slow.
    offline = isinstance(reason, socket.gaierror | ConnectionRefusedError) or (
      getattr(reason, 'errno', None) in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    )
    raise FailedError(text[:300], offline=offline) from e
  # A connection that is cut looks like the end of the file.
  if expected is not None and received != expected:
    raise FailedError(f'the connection ended after {received} of {expected} B')


def problem(path: pathlib.Path, suffix: str) -> str | None:
  """Returns why a file is not a whole one of its kind, or None.

  A server may answer with a web page (a login, a notice) instead of the file,
  and a connection that is cut looks like the end of a file of unknown length.
  Both are seen without reading all of it.

  Args:
    path: of the file.
    suffix: that it has or will have: '.npz', '.safetensors', '.pth' and its
      like, '.json'. Of others only web pages are found.
  """
  with path.open('rb') as file:
    start = file.read(256)
  if not start:
    return 'it is empty'
  if start.lstrip().lower().startswith((b'<!doctype', b'<html')):
    return f'it is a web page, not a {suffix or "file of weights"}'
  if suffix in ('.npz', *PICKLES):
    if start.startswith(_ZIP):  # Its table of contents is at the end.
      return None if zipfile.is_zipfile(path) else 'its end is missing'
    if suffix == '.npz' or not start.startswith(_PICKLE):
      return f'it is not a whole {suffix}: it begins with {start[:8]!r}'
  try:
    if suffix == '.safetensors':
      files.read_safetensors_header(path)
    elif suffix == '.json':
      files.read_json(path)
  except UserError as e:
    if suffix == '.json':
      return str(e).replace(str(path), 'it').partition('; if it was')[0]
    return 'its end is missing, or its header is not of safetensors'
  return None


def address(url: str) -> str:
  """Returns what a browser opens."""
  if url.startswith('hf://'):
    repository, path = hub_parts(url)
    if path is None:
      return f'{hub()}/{repository}'
    return f'{hub()}/{repository}/resolve/main/{urllib.parse.quote(path)}'
  if url.startswith('gs://'):
    return url.replace('gs://', _STORAGE, 1)
  return url


def hub() -> str:
  """Returns the address of the Hugging Face Hub, or of a mirror of it."""
  return os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')


def hub_parts(url: str) -> tuple[str, str | None]:
  """Returns 'owner/repository' and the path in it or None.

  Raises:
    UserError: an address of another form.
  """
  owner, _, rest = url.removeprefix('hf://').strip('/').partition('/')
  repository, _, path = rest.partition('/')
  if not owner or not repository or owner in ('datasets', 'spaces'):
    raise UserError(
      f'{url} is not an address of the Hugging Face Hub; expected'
      ' hf://owner/repository or hf://owner/repository/file'
    )
  return f'{owner}/{repository}', path or None


def _opened(url: str, seconds: float) -> Any:
  """Returns an open file, whose server has `seconds` for each answer."""
  scheme, token = url.partition('://')[0], None
  if scheme == 'hf':
    if os.environ.get('HF_HUB_OFFLINE', '').lower() in _TRUE:
      raise FailedError('the variable HF_HUB_OFFLINE is set')
    token = _hub_token()
  elif scheme not in ('http', 'https'):
    try:
      return epath.Path(url).open('rb')
    except ImportError:  # What is public needs no client of Google's cloud.
      if scheme != 'gs':
        raise
  request = urllib.request.Request(
    address(url), headers={'User-Agent': 'vit_jax'}
  )
  if token:
    request.add_unredirected_header('Authorization', f'Bearer {token}')
  opener = urllib.request.build_opener(
    _Redirects, urllib.request.HTTPSHandler(context=_ssl_context())
  )
  return opener.open(request, timeout=seconds)


def _ssl_context() -> ssl.SSLContext:
  context = ssl.create_default_context()
  # Some Pythons (python.org's for macOS) know no authorities of their own.
  with contextlib.suppress(ImportError):
    import certifi

    context.load_verify_locations(certifi.where())
  return context


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows to web addresses only, and keeps a token from other servers."""

  def redirect_request(self, req, fp, code, msg, headers, newurl):
    old, new = map(urllib.parse.urlsplit, (req.full_url, newurl))
    if new.scheme not in ('https', old.scheme):
      raise FailedError(f'it redirects from {old.scheme} to {new.scheme}')
    request = super().redirect_request(req, fp, code, msg, headers, newurl)
    token = req.unredirected_hdrs.get('Authorization')
    if token and (old.scheme, old.netloc) == (new.scheme, new.netloc):
      request.add_unredirected_header('Authorization', token)
    return request


def _hub_token() -> str | None:
  """Returns what private repositories ask for, if the user has one."""
  try:
    import huggingface_hub
  except ImportError:
    return os.environ.get('HF_TOKEN')
  return huggingface_hub.get_token()
