"""Files and repositories of a Hugging Face Hub on this machine."""

import json
import sys

import pytest

from vit_jax.errors import UserError
from vit_jax.pretrained import download
from vit_jax.pretrained.download import Remote


def test_a_file_of_the_hugging_face_hub(hub, fetch, tensors):
  (server, url), (fetch, _) = hub, fetch
  path = fetch(Remote('hf://timm/vit_x.augreg/model.safetensors'))
  assert path.name == 'vit_x.augreg.safetensors'
  assert path.read_bytes() == tensors
  assert [p.name for p in path.parent.iterdir()] == [path.name]
  address = '/timm/vit_x.augreg/resolve/main/'
  assert server.requests == [('GET', f'{address}model.safetensors')]
  with pytest.raises(UserError, match=f'from {url}{address}a/b.bin'):
    fetch(Remote('hf://timm/vit_x.augreg/a/b.bin', 'sha256:0000'))


@pytest.mark.parametrize('installed', [True, False])
def test_the_hub_s_token_goes_to_no_other_server(
  installed, hub, servers, fetch, monkeypatch
):
  if installed:
    pytest.importorskip('huggingface_hub')
  else:
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  (server, _), (other, other_url), (fetch, _) = hub, servers(), fetch
  server.target = '/elsewhere/x.npz'
  fetch(Remote('hf://to_here/private/x.npz'))
  assert server.tokens == ['Bearer hf_secret'] * 2
  server.target = f'{other_url}/y.npz'
  fetch(Remote('hf://to_there/private/y.npz'))
  assert server.tokens == ['Bearer hf_secret'] * 3
  assert other.tokens == [None]
  fetch(Remote(f'{other_url}/z.npz'))
  assert other.tokens == [None, None]


def test_a_repository_of_the_hub_becomes_a_folder(hub, npz, tensors, tmp_path):
  server, _ = hub
  at = '/google/vit-x/resolve/main'
  server.files = {
    f'{at}/config.json': b'{"a": 1}',
    f'{at}/preprocessor_config.json': b'{}',
    f'{at}/model.safetensors': tensors,
    f'{at}/pytorch_model.bin': npz,
  }
  log = []
  for _ in range(2):
    path = download.fetch_repository(
      'google/vit-x', weights_dir=tmp_path, on_log=log.append
    )
  assert path == tmp_path / 'google--vit-x'
  names = ['config.json', 'model.safetensors', 'preprocessor_config.json']
  assert sorted(p.name for p in path.iterdir()) == names
  assert (path / 'config.json').read_text() == '{"a": 1}'
  assert len(log) == len(server.requests) == 3


def test_a_repository_with_several_files_of_weights(hub, tensors, tmp_path):
  server, _ = hub
  at = '/google/vit-x/resolve/main'
  table = {'a': 'model-1-of-2.safetensors', 'b': 'model-2-of-2.safetensors'}
  server.files = {f'{at}/{name}': tensors for name in table.values()}
  server.files |= {
    f'{at}/config.json': b'{}',
    f'{at}/model.safetensors.index.json': json.dumps(
      {'weight_map': table}
    ).encode(),
  }
  last = server.files.pop(f'{at}/model-2-of-2.safetensors')
  more = dict(weights_dir=tmp_path, on_log=lambda line: None)
  with pytest.raises(UserError, match='404'):
    download.fetch_repository('google/vit-x', **more)
  server.files[f'{at}/model-2-of-2.safetensors'] = last
  server.requests.clear()
  path = download.fetch_repository('google/vit-x', **more)
  assert server.requests == [('GET', f'{at}/model-2-of-2.safetensors')]
  assert len(list(path.iterdir())) == 4
  # An index comes from outside.
  index = path / 'model.safetensors.index.json'
  for text, message in (
    ('{"weight_map": {"a": "../../x.safetensors"}}', 'names of files beside'),
    ('{"weight_map": {"a": []}}', 'names of files beside'),
    ('[]', 'must be a JSON object'),
  ):
    index.write_text(text)
    with pytest.raises(UserError, match=message):
      download.fetch_repository('google/vit-x', **more)


def test_messages_of_servers_are_bounded_and_without_control_characters(
  hub, tmp_path, monkeypatch
):
  server, _ = hub
  at = '/google/vit-x/resolve/main/config.json'
  server.files = {at: b'[' + b' ' * 2000 + b']'}
  log = []
  more = dict(weights_dir=tmp_path, on_log=log.append)
  monkeypatch.setattr(download, 'MAX_JSON_BYTES', 1000)
  with pytest.raises(UserError, match='it has more than 1,000 bytes'):
    download.fetch_repository('google/vit-x', **more)
  server.files = {at: b'{"\x1b]0;"'}
  with pytest.raises(UserError, match='not valid JSON') as e:
    download.fetch_repository('google/vit-x', **more)
  assert '\x1b' not in str(e.value)
  with pytest.raises(UserError) as e:
    download.fetch_repository('google/\x1b[2Jx', **more)
  assert '\x1b' not in ''.join([str(e.value), *log])


def test_a_missing_repository(hub, tmp_path, monkeypatch):
  server, url = hub
  server.files = {'/google/empty/resolve/main/config.json': b'{}'}
  more = dict(weights_dir=tmp_path, on_log=lambda line: None)
  for name, message in (
    ('google/vit-x', '404'),
    ('google/empty', r'none of model\.safetensors'),
  ):
    with pytest.raises(UserError, match=message) as e:
      download.fetch_repository(name, **more)
    for word in (
      f'{url}/{name}',
      'HF_TOKEN',
      f'json into {tmp_path / name.replace("/", "--")}',
    ):
      assert word in str(e.value)
  server.requests.clear()
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  with pytest.raises(UserError, match='HF_HUB_OFFLINE is set'):
    download.fetch_repository('google/vit-x', **more)
  assert server.requests == []


def test_without_a_connection_one_error_says_what_to_put_where(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')  # Nothing answers.
  with pytest.raises(UserError) as e:
    download.fetch_repository(
      'google/vit-x', weights_dir=tmp_path, on_log=lambda line: None
    )
  assert 'there is no connection to http://127.0.0.1:9 (' in str(e.value)
  assert f'json into {tmp_path / "google--vit-x"}, or' in str(e.value)
  assert f'weights_dir or ${download.FOLDER_VARIABLE}' in str(e.value)
  assert 'token' not in str(e.value)
  assert e.value.__suppress_context__  # Python shows one traceback.
  assert list(tmp_path.iterdir()) == []
