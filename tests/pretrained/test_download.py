"""Downloads from a server on this machine."""

import hashlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from vit_jax.errors import UserError
from vit_jax.pretrained import download, transfer
from vit_jax.pretrained.download import Remote


@pytest.mark.parametrize(
  'checksum', [None, 'sha256:{}', 'md5:{}', 'sha256:{:.8}', 'SHA256:{}']
)
def test_a_file_is_downloaded_once(checksum, server, fetch, npz, tmp_path):
  (url, requests), (fetch, log) = server, fetch
  if checksum is not None:
    algorithm = checksum.partition(':')[0]
    digits = hashlib.new(algorithm.lower(), npz).hexdigest()
    upper = algorithm.isupper()
    checksum = checksum.format(digits.upper() if upper else digits)
  for _ in range(2):
    path = fetch(Remote(f'{url}/folder/x.npz', checksum))
    assert path == tmp_path / 'weights' / 'x.npz'
    assert path.read_bytes() == npz
  assert requests == [('GET', '/folder/x.npz')]
  assert log == [f'downloading {url}/folder/x.npz to {path}']


def test_a_download_with_another_checksum_is_not_kept(
  server, fetch, npz, tmp_path
):
  (url, _), (fetch, _) = server, fetch
  with pytest.raises(UserError) as e:
    fetch(Remote(f'{url}/x.npz', 'sha256:1234'))
  assert (
    f'its sha256 is {hashlib.sha256(npz).hexdigest()[:4]}, expected 1234'
    in str(e.value)
  )
  assert list((tmp_path / 'weights').iterdir()) == []


@pytest.mark.parametrize(
  'checksum', ['crc32:1234', '1234', 'sha256:', 'md5:xyz', f'md5:{"1" * 33}']
)
def test_a_checksum_that_cannot_be_checked_is_refused(checksum):
  with pytest.raises(UserError, match=r'cannot check .*expected sha256: or'):
    Remote('https://x.org/x.npz', checksum)


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('/short/x.npz', r'the connection ended after \d+ of \d+ B'),
    ('/cut/x.npz', 'its end is missing'),
    ('/cut/x.safetensors', 'its end is missing'),
    ('/html/x.npz', r'it is a web page, not a \.npz'),
    ('/html/x.pth', r'it is a web page, not a \.pth'),
    ('/x.pth', None),  # A zip, as torch writes it.
    ('/x.safetensors', None),
    ('/as/npz.safetensors?download=true', None),
  ],
)
def test_only_whole_files_of_their_kind_are_kept(
  path, message, server, fetch, tmp_path
):
  (url, _), (fetch, _) = server, fetch
  if message is None:
    assert fetch(Remote(url + path)).exists()
    return
  with pytest.raises(UserError, match=message):
    fetch(Remote(url + path))
  assert list((tmp_path / 'weights').iterdir()) == []


def test_a_damaged_file_in_the_folder_is_named(server, fetch, npz, tmp_path):
  (url, requests), (fetch, _) = server, fetch
  path = tmp_path / 'weights' / 'x.npz'
  path.parent.mkdir()
  good = f'sha256:{hashlib.sha256(npz).hexdigest()}'
  for content, checksum, message in (
    (npz + b'.', good, 'its sha256 is'),
    (npz[:-9], None, 'its end is missing'),
    (b'<html>', None, 'it is a web page'),
  ):
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf'{path} is damaged: {message}'):
      fetch(Remote(f'{url}/x.npz', checksum))
  assert requests == []


def test_the_next_address_is_tried(server, fetch):
  (url, _), (fetch, log) = server, fetch
  path = fetch(Remote(f'{url}/absent/a.npz'), Remote(f'{url}/b.npz'))
  assert path.name == 'b.npz'
  assert sum(line.startswith('failed: HTTP Error 404') for line in log) == 1


def test_a_message_of_a_server_cannot_control_the_terminal(fetch, monkeypatch):
  def refuse(url, seconds):
    raise OSError('no \x1b[2J')

  monkeypatch.setattr(transfer, '_opened', refuse)
  fetch, log = fetch
  with pytest.raises(UserError):
    fetch(Remote('https://x.org/x.npz'))
  assert log[-1] == r'failed: no \x1b[2J'


def test_files_of_the_folder_come_before_downloads(
  server, fetch, npz, tmp_path
):
  (url, requests), (fetch, _) = server, fetch
  (tmp_path / 'weights').mkdir()
  (tmp_path / 'weights' / 'b.npz').write_bytes(npz)
  path = fetch(Remote(f'{url}/a.npz'), Remote(f'{url}/b.npz'))
  assert path.name == 'b.npz'
  assert requests == []


def test_without_a_network_the_error_says_what_to_put_where(fetch, tmp_path):
  fetch, log = fetch
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
  assert 'could be downloaded, for lack of a connection:' in str(e.value)
  assert len(log) == 4  # Each is tried once.


def test_a_server_that_says_nothing_is_given_up(server, fetch, monkeypatch):
  (url, _), (fetch, _) = server, fetch
  monkeypatch.setattr(transfer, 'ANSWER_SECONDS', 0.2)
  start = time.monotonic()
  with pytest.raises(UserError, match=r'no answer within 0\.2 s'):
    fetch(Remote(f'{url}/mute/x.npz'))
  assert time.monotonic() - start < 10


def test_a_download_has_a_limit_of_time(server, fetch, npz, tmp_path):
  (url, _), (fetch, _) = server, fetch
  with pytest.raises(UserError) as e:
    fetch(Remote(f'{url}/drip/x.npz'), download_seconds=0.3)
  # A busy machine may need all of it to get an answer.
  assert re.search('timed out after|no answer within', str(e.value))
  assert '(download_seconds=0.3)' in str(e.value)
  assert list((tmp_path / 'weights').iterdir()) == []


@pytest.mark.parametrize(
  'target', ['ftp://127.0.0.1/x.npz', 'file:///etc/passwd']
)
def test_redirects_lead_to_web_addresses_only(target, servers, fetch, npz):
  (server, url), (fetch, _) = servers(), fetch
  server.target = target
  with pytest.raises(
    UserError, match=r': (it redirects from http to|.*Redirection to)'
  ):
    fetch(Remote(f'{url}/to_ftp/x.npz'))
  server.target = '/x.npz'
  assert fetch(Remote(f'{url}/to_here/x.npz')).read_bytes() == npz


@pytest.mark.parametrize(
  ('url', 'name'),
  [
    ('https://x.org/a/b.npz?download=true', 'b.npz'),
    ('https://x.org/a/b%20c.npz?x=/y#z', 'b c.npz'),
    ('hf://timm/vit_x.augreg/model.safetensors', 'vit_x.augreg.safetensors'),
    ('hf://owner/x/folder/b.npz', 'b.npz'),
    ('gs://bucket/what?.npz', 'what?.npz'),
  ],
)
def test_the_name_of_a_file_is_the_last_part_of_its_address(url, name):
  assert Remote(url).file_name == name


@pytest.mark.parametrize(
  'name',
  ['../x.npz', '/x.npz', 'a/../../x.npz', '', 'a\\b', 'a\0b', 'a\x1b[2J'],
)
def test_no_file_is_written_outside_the_folder(name):
  with pytest.raises(UserError, match='is not a file name'):
    Remote('https://x.org/x.npz', name=name)
  with pytest.raises(UserError, match='is not a file name'):
    Remote('https://x.org/%2e%2e')


def test_remains_of_a_killed_download_are_removed(server, fetch, tmp_path):
  (url, _), (fetch, _) = server, fetch
  weights, root = tmp_path / 'weights', pathlib.Path(__file__).parents[2]
  code = (
    'from vit_jax.pretrained import download\n'
    f'remote = download.Remote({url + "/stall/x.npz"!r})\n'
    f'download.fetch([remote], weights_dir={str(weights)!r})'
  )
  environ = dict(os.environ, PYTHONPATH=str(root))
  child = subprocess.Popen([sys.executable, '-c', code], env=environ)

  def unfinished():
    return list(weights.glob('.x.npz*.part'))

  try:
    deadline = time.monotonic() + 120
    while not unfinished():
      assert time.monotonic() < deadline
      time.sleep(0.05)
    # One that is at work is left alone.
    fetch(Remote(f'{url}/x.npz'))
    assert len(unfinished()) == 1
  finally:
    child.send_signal(signal.SIGKILL)
    child.wait()
  (weights / 'x.npz').unlink()
  fetch(Remote(f'{url}/x.npz'))
  assert [p.name for p in weights.iterdir()] == ['x.npz']


def test_google_cloud_storage_through_epath(fetch, npz, tmp_path, monkeypatch):
  fetch, _ = fetch
  bucket = tmp_path / 'bucket'
  bucket.mkdir()
  (bucket / 'x.npz').write_bytes(npz)

  def path_of(url):
    return pathlib.Path(url.replace('gs://', f'{tmp_path}/'))

  monkeypatch.setattr(transfer.epath, 'Path', path_of)
  assert fetch(Remote('gs://bucket/x.npz')).read_bytes() == npz
  with pytest.raises(
    UserError, match=r'from https://storage\.googleapis\.com/bucket/absent'
  ):
    fetch(Remote('gs://bucket/absent.npz'))


def test_a_public_bucket_needs_no_client(server, fetch, npz, monkeypatch):
  (url, requests), (fetch, _) = server, fetch

  def no_client(path):
    raise ImportError('Please install gcsfs')

  monkeypatch.setattr(transfer.epath, 'Path', no_client)
  monkeypatch.setattr(transfer, '_STORAGE', f'{url}/')
  assert fetch(Remote('gs://bucket/x.npz')).read_bytes() == npz
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
