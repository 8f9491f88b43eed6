"""Downloads from a server on this machine."""

import hashlib
import http.server
import pathlib
import sys
import threading

import pytest

from vit_jax.errors import UserError
from vit_jax.pretrained import download
from vit_jax.pretrained.download import Remote

CONTENT = bytes(range(256)) * 50
SHA256 = f'sha256:{hashlib.sha256(CONTENT).hexdigest()}'
MD5 = f'md5:{hashlib.md5(CONTENT).hexdigest()}'
COMMIT = '0' * 40


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves CONTENT; under /short only half of what it promises."""

  def do_GET(self, *, with_body=True):
    self.server.requests.append((self.command, self.path))
    if 'absent' in self.path:
      self.send_error(404)
      return
    self.send_response(200)
    self.send_header('Content-Length', str(len(CONTENT)))
    # What the client of the Hugging Face hub asks for.
    self.send_header('ETag', '"abc"')
    self.send_header('X-Repo-Commit', COMMIT)
    self.end_headers()
    if with_body:
      short = self.path.startswith('/short')
      self.wfile.write(CONTENT[: len(CONTENT) // (1 + short)])

  def do_HEAD(self):
    self.do_GET(with_body=False)

  def log_message(self, *args):
    pass


@pytest.fixture
def server(monkeypatch):
  """Returns the address of a server, and the list of what was asked of it."""
  for name in ('no_proxy', 'NO_PROXY'):
    monkeypatch.setenv(name, '127.0.0.1')
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.requests = []
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  yield f'http://127.0.0.1:{server.server_port}', server.requests
  server.shutdown()
  thread.join()
  server.server_close()


@pytest.fixture
def fetch(tmp_path):
  """Returns `fetch(*remotes)` into a folder, and its log."""
  log = []

  def fetch_into(*remotes, **more):
    more = dict(weights_dir=tmp_path / 'weights', on_log=log.append) | more
    return download.fetch(remotes, **more)

  return fetch_into, log


@pytest.mark.parametrize('checksum', [None, SHA256, MD5, SHA256[:15]])
def test_a_file_is_downloaded_once(checksum, server, fetch, tmp_path):
  (url, requests), (fetch, log) = server, fetch
  for _ in range(2):
    path = fetch(Remote(f'{url}/folder/x.npz', checksum))
    assert path == tmp_path / 'weights' / 'x.npz'
    assert path.read_bytes() == CONTENT
  assert requests == [('GET', '/folder/x.npz')]
  assert log == [f'downloading {url}/folder/x.npz to {path}']


def test_a_download_with_another_checksum_is_not_kept(server, fetch, tmp_path):
  (url, _), (fetch, _) = server, fetch
  with pytest.raises(UserError) as e:
    fetch(Remote(f'{url}/x.npz', 'sha256:1234'))
  assert f'its sha256 is {SHA256[7:11]}, expected 1234' in str(e.value)
  assert list((tmp_path / 'weights').iterdir()) == []


def test_a_download_that_is_cut_off_is_not_kept(server, fetch, tmp_path):
  (url, _), (fetch, _) = server, fetch
  with pytest.raises(UserError, match='ended after 6400 of 12800'):
    fetch(Remote(f'{url}/short/x.npz'))
  assert list((tmp_path / 'weights').iterdir()) == []


def test_a_damaged_file_in_the_folder_is_named(server, fetch, tmp_path):
  (url, requests), (fetch, _) = server, fetch
  path = fetch(Remote(f'{url}/x.npz', SHA256))
  path.write_bytes(CONTENT[:-1])
  with pytest.raises(UserError, match=rf'{path} is damaged: its sha256 is'):
    fetch(Remote(f'{url}/x.npz', SHA256))
  assert len(requests) == 1


def test_the_next_address_is_tried(server, fetch):
  (url, _), (fetch, log) = server, fetch
  path = fetch(Remote(f'{url}/absent/a.npz'), Remote(f'{url}/b.npz'))
  assert path.name == 'b.npz'
  assert any('404' in line for line in log)


def test_what_lies_in_the_folder_comes_before_downloads(
  server, fetch, tmp_path
):
  (url, requests), (fetch, _) = server, fetch
  (tmp_path / 'weights').mkdir()
  (tmp_path / 'weights' / 'b.npz').write_text('b')
  path = fetch(Remote(f'{url}/a.npz'), Remote(f'{url}/b.npz'))
  assert path.read_text() == 'b'
  assert requests == []


def test_without_a_network_the_error_says_what_to_put_where(fetch, tmp_path):
  fetch, _ = fetch
  # Port 9 is where nothing answers.
  with pytest.raises(UserError) as e:
    fetch(
      Remote('http://127.0.0.1:9/vit/a.npz'),
      Remote('http://127.0.0.1:9/b.safetensors'),
    )
  assert (
    'put a.npz (from http://127.0.0.1:9/vit/a.npz) or b.safetensors (from'
    f' http://127.0.0.1:9/b.safetensors) into {tmp_path / "weights"}'
  ) in str(e.value)
  assert download.FOLDER_VARIABLE in str(e.value)


@pytest.mark.parametrize('installed', [True, False])
def test_the_hugging_face_hub(installed, server, fetch, monkeypatch):
  if installed:
    pytest.importorskip('huggingface_hub')
  else:
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  (url, requests), (fetch, _) = server, fetch
  monkeypatch.setenv('HF_ENDPOINT', url)
  path = fetch(Remote('hf://timm/vit_x.augreg/model.safetensors'))
  assert path.name == 'vit_x.augreg.safetensors'
  assert path.read_bytes() == CONTENT
  assert [p.name for p in path.parent.iterdir()] == [path.name]
  address = '/timm/vit_x.augreg/resolve/'
  assert all(path.startswith(address) for _, path in requests)
  with pytest.raises(UserError, match=f'from {url}{address}main/a/b.bin'):
    fetch(Remote('hf://timm/vit_x.augreg/a/b.bin', 'sha256:0000'))


def test_google_cloud_storage_through_epath(fetch, tmp_path, monkeypatch):
  fetch, _ = fetch
  bucket = tmp_path / 'bucket'
  bucket.mkdir()
  (bucket / 'x.npz').write_bytes(CONTENT)

  def path_of(url):
    return pathlib.Path(url.replace('gs://', f'{tmp_path}/'))

  monkeypatch.setattr(download.epath, 'Path', path_of)
  assert fetch(Remote('gs://bucket/x.npz')).read_bytes() == CONTENT
  with pytest.raises(
    UserError, match=r'from https://storage\.googleapis\.com/bucket/absent'
  ):
    fetch(Remote('gs://bucket/absent.npz'))


def test_a_public_bucket_needs_no_client(server, fetch, monkeypatch):
  (url, requests), (fetch, _) = server, fetch

  def no_client(path):
    raise ImportError('Please install gcsfs')

  monkeypatch.setattr(download.epath, 'Path', no_client)
  monkeypatch.setattr(download, '_STORAGE', f'{url}/')
  assert fetch(Remote('gs://bucket/x.npz')).read_bytes() == CONTENT
  assert requests == [('GET', '/bucket/x.npz')]


def test_the_folder_is_the_argument_the_variable_or_the_cache(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  monkeypatch.delenv(download.FOLDER_VARIABLE, raising=False)
  assert str(download.folder()) == '/home/me/.cache/vit_jax'
  monkeypatch.setenv(download.FOLDER_VARIABLE, '/data/weights')
  assert str(download.folder()) == '/data/weights'
  assert str(download.folder('~/w')) == '/home/me/w'


def test_a_folder_that_cannot_be_written_is_named(server, fetch, tmp_path):
  (url, _), (fetch, _) = server, fetch
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot write'):
    fetch(Remote(f'{url}/x.npz'), weights_dir=tmp_path / 'file')
