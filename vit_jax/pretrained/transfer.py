"""Download of one file within limits of time.

`http(s)://` and, where no client of Google's cloud is installed, public
`gs://` files are read with the standard library, `hf://` files through the
Hub's web addresses, and everything else by epath. Nothing is tried twice.
"""

import contextlib
import errno
import http.client
import os
import pathlib
import queue
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, BinaryIO

from etils import epath

from vit_jax.errors import UserError
from vit_jax.printable import printable

OPEN_SECONDS = 30  # From the name of the server to the start of its answer.
READ_SECONDS = 30  # Between two packets.
_STORAGE = 'https://storage.googleapis.com/'
_CHUNK_BYTES = 1 << 20
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
  try:
    with _opened(url, deadline) as source, part.open('wb') as target:
      expected = _content_length(source)
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
    raise FailedError(text[:300], offline=_is_offline(reason)) from e
  # A connection that is cut looks like the end of the file.
  if expected is not None and received != expected:
    raise FailedError(f'the connection ended after {received} of {expected} B')


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


def _is_offline(reason: Any) -> bool:
  """Returns whether an error says that a server could not be reached."""
  # Not every timeout: a server may also be slow.
  return isinstance(reason, socket.gaierror | ConnectionRefusedError) or (
    isinstance(reason, OSError)
    and reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
  )


def _opened(url: str, deadline: float) -> Any:
  scheme = url.partition('://')[0]
  if scheme == 'hf':
    if os.environ.get('HF_HUB_OFFLINE', '').lower() in _TRUE:
      raise FailedError('the variable HF_HUB_OFFLINE is set')
    token = _hub_token()
    return _within(lambda: _open_http(address(url), token), deadline)
  if scheme in ('http', 'https'):
    return _within(lambda: _open_http(url), deadline)
  return _within(lambda: _open_by_epath(url), deadline)


def _open_by_epath(url: str) -> BinaryIO | http.client.HTTPResponse:
  try:
    return epath.Path(url).open('rb')
  except ImportError:  # No client of Google's cloud; what is public needs none.
    if not url.startswith('gs://'):
      raise
    return _open_http(address(url))


def _open_http(url: str, token: str | None = None) -> http.client.HTTPResponse:
  request = urllib.request.Request(url, headers={'User-Agent': 'vit_jax'})
  if token:
    request.add_unredirected_header('Authorization', f'Bearer {token}')
  opener = urllib.request.build_opener(
    _Redirects, urllib.request.HTTPSHandler(context=_ssl_context())
  )
  return opener.open(request, timeout=READ_SECONDS)


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


def _within(open_it: Callable[[], Any], deadline: float) -> Any:
  """Returns what `open_it` returns, if that takes less than OPEN_SECONDS.

  A server has several addresses, each with a time limit of its own, and the
  search for its name has none: this is the limit of all together.
  """
  answers: queue.SimpleQueue = queue.SimpleQueue()
  late = threading.Event()

  def work():
    try:
      answer = open_it()
    except BaseException as e:  # Raised again below.
      answers.put((None, e))
      return
    answers.put((answer, None))
    if late.is_set():
      with contextlib.suppress(Exception):
        answer.close()

  seconds = max(0.0, min(OPEN_SECONDS, deadline - time.monotonic()))
  threading.Thread(target=work, daemon=True).start()
  try:
    answer, error = answers.get(timeout=seconds)
  except queue.Empty:
    late.set()
    raise FailedError(f'no answer within {seconds:.3g} s') from None
  if error is not None:
    raise error
  return answer


def _content_length(source: Any) -> int | None:
  headers = getattr(source, 'headers', None)
  text = headers.get('Content-Length') if headers is not None else None
  return int(text) if text is not None else None
