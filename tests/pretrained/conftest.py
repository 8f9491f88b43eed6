"""Small models, files of others' making, and servers of files."""

import dataclasses
import functools
import http.server
import io
import shutil
import threading
import time
import tracemalloc
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vit_jax import lookup, trees
from vit_jax.errors import UserError
from vit_jax.pretrained import catalog, download
from vit_jax.pretrained.weights import Weights


@pytest.fixture
def make_weights():
  """Returns `make(image_shape=(32, 32, 3), **section) -> Weights`.

  Every parameter is drawn from N(0, 0.2), so that none is zero or one and any
  two that are swapped show.
  """

  def make(image_shape=(32, 32, 3), preprocess=None, **section):
    sizes = dict(width=24, depth=3, mlp_dim=40, num_heads=3, patch_size=8)
    section = dict(name='vit', num_classes=5) | sizes | section
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32),
      shapes_of(tuple(section.items()), image_shape),
    )
    preprocess = preprocess or dict(image_size=image_shape[:2])
    return Weights(params=params, model=section, preprocess=preprocess)

  return make


@functools.cache
def shapes_of(section, image_shape):
  model = lookup.build('models', dict(section), 'Model')
  image = jnp.zeros((1, *image_shape))
  return jax.eval_shape(model.init, jax.random.key(0), image)['params']


@pytest.fixture
def outputs():
  """Returns `outputs(weights, image_BHWC) -> dict` of the model's outputs."""

  def apply(weights, image):
    model = lookup.build('models', weights.model, 'Model')
    params = trees.unflatten(weights.params)
    return jax.jit(model.apply)({'params': params}, image)

  return apply


@pytest.fixture
def google_file():
  """Returns the function `google_arrays`."""
  return google_arrays


def google_arrays(
  *,
  prefix='',
  numbers=(1, 2, 3),
  position='Transformer/posembed_input/pos_embedding',
  class_token=True,
  class_row=True,
  map_head='',
  pre_logits=False,
  stacked=False,
  dtype='float32',
):
  """Returns the arrays of a Google file, its names spelled out once more.

  The sizes are those of `make_weights`, but for two blocks.
  """
  rng = np.random.default_rng(0)
  attention, norm, mlp = numbers
  width, depth, heads = 24, 2, (3, 8)

  def layer(name, *shape, bias=None, leaf='kernel'):
    return {f'{name}/{leaf}': shape, f'{name}/bias': bias or shape[-1:]}

  def parts(name, attention, norm, mlp):
    return {
      **layer(f'{name}LayerNorm_{norm}', width, leaf='scale'),
      **{
        f'{name}MultiHeadDotProductAttention_{attention}/{key}': shape
        for part in ('query', 'key', 'value')
        for key, shape in layer(part, width, *heads, bias=heads).items()
      },
      **layer(
        f'{name}MultiHeadDotProductAttention_{attention}/out', *heads, width
      ),
      **layer(f'{name}MlpBlock_{mlp}/Dense_0', width, 40),
      **layer(f'{name}MlpBlock_{mlp}/Dense_1', 40, width),
    }

  shapes = {
    **layer('embedding', 8, 8, 3, width),
    **layer('Transformer/encoder_norm', width, leaf='scale'),
    **layer('head', 8 if pre_logits else width, 5),
  }
  if class_token:
    shapes['cls'] = (1, 1, width)
  if position:
    shapes[position] = (1, 4**2 + class_row, width)
  if map_head is not None and not class_token:
    shapes[f'{map_head}probe'] = (1, 1, width)
    shapes |= parts(map_head, 0, 0, 0)
  if pre_logits:
    shapes |= layer('pre_logits', width, 8)
  for i in range(depth):
    name = f'Transformer/encoderblock_{i}/'
    shapes |= layer(f'{name}LayerNorm_0', width, leaf='scale')
    shapes |= parts(name, attention, norm, mlp)
  arrays = {
    name: rng.normal(0, 0.2, shape).astype(dtype)
    for name, shape in sorted(shapes.items())
  }
  if stacked:
    block = 'Transformer/encoderblock'
    for name in [n for n in arrays if n.startswith(f'{block}_0/')]:
      rest = name.removeprefix(f'{block}_0/')
      each = [arrays.pop(f'{block}_{i}/{rest}') for i in range(depth)]
      arrays[f'{block}/{rest}'] = np.stack(each)
  return {prefix + name: array for name, array in arrays.items()}


@pytest.fixture
def timm():
  """Returns timm; tests/conftest.py mends torchvision, which it imports."""
  return pytest.importorskip('timm')


_ARRAY = np.arange(3000, dtype=np.float32)


def _npz():
  out = io.BytesIO()
  np.savez(out, x=_ARRAY)
  return out.getvalue()


_CONTENT = _npz()
_SAFETENSORS = safetensors.numpy.save({'x': _ARRAY})
_HTML = b'<!DOCTYPE html><html>Please log in</html>'


class _Handler(http.server.BaseHTTPRequestHandler):
  """Serves `server.files`, else _CONTENT or _SAFETENSORS by the suffix.

  The first folder says how: /short promises twice as much, /cut says no length
  and stops half-way, /stall stops without an end, /drip comes byte by byte,
  /mute says nothing, /html is a web page, /to_... redirects to `server.target`.
  """

  def do_GET(self):
    self.server.requests.append((self.command, self.path))
    self.server.tokens.append(self.headers.get('Authorization'))
    files, path = self.server.files, self.path.partition('?')[0]
    how = path.split('/')[1]
    if how == 'mute':
      self.server.stop.wait(20)
      return
    if 'absent' in path or (files and path not in files):
      self.send_error(404)
      return
    if how.startswith('to_'):
      self.send_response(302)
      self.send_header('Location', self.server.target)
      self.end_headers()
      return
    content = _SAFETENSORS if path.endswith('.safetensors') else _CONTENT
    content = _HTML if how == 'html' else files.get(path, content)
    self.send_response(200)
    if how != 'cut':
      self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if how in ('short', 'cut', 'stall'):
      content = content[: len(content) // 2]
    if how == 'drip':
      for i in range(len(content)):
        self.wfile.write(content[i : i + 1])
        if self.server.stop.wait(0.02):
          return
    else:
      self.wfile.write(content)
    if how == 'stall':
      self.server.stop.wait(60)

  def log_message(self, *args):
    pass


@pytest.fixture
def npz():
  """Returns the bytes of the file that the servers have as *.npz and others."""
  return _CONTENT


@pytest.fixture
def tensors():
  """Returns the bytes of the file that the servers have as *.safetensors."""
  return _SAFETENSORS


@pytest.fixture
def servers(monkeypatch):
  """Returns `start()`, which returns a server and its address."""
  for name in ('no_proxy', 'NO_PROXY'):
    monkeypatch.setenv(name, '127.0.0.1')
  monkeypatch.setenv('HF_TOKEN', 'hf_secret')
  started = []

  def start():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
    server.requests, server.tokens, server.files = [], [], {}
    server.stop, server.target = threading.Event(), None
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    started.append((server, thread))
    return server, f'http://127.0.0.1:{server.server_port}'

  yield start
  for server, thread in started:
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(servers):
  """Returns the address of a server, and the list of what was asked of it."""
  server, url = servers()
  return url, server.requests


@pytest.fixture
def hub(servers, monkeypatch):
  """Returns a server in the place of the Hugging Face Hub, and its address."""
  server, url = servers()
  monkeypatch.setenv('HF_ENDPOINT', url)
  return server, url


@pytest.fixture
def fetch(tmp_path):
  """Returns `fetch(*remotes)` into a folder, and its log."""
  log = []

  def fetch_into(*remotes, **more):
    more = dict(weights_dir=tmp_path / 'weights', on_log=log.append) | more
    return download.fetch(remotes, **more)

  return fetch_into, log


@pytest.fixture(scope='session')
def good_files(tmp_path_factory):
  """Returns `{kind: path}` of the files that `check_refused` has written."""
  return {'folder': tmp_path_factory.mktemp('good')}


@pytest.fixture
def check_refused(good_files, make_weights, tmp_path):
  """Returns `check(kind, breaks)`: a file is one error once it is broken.

  Where `breaks(path)` has broken a copy of a good file or folder of `kind`
  ('npz', 'ours', 'timm', 'huggingface' or 'pth'), loading it must be a
  UserError, quickly and without much memory.
  """

  def check(kind, breaks, *, max_seconds=10, max_bytes=64 * 2**20):
    if kind not in good_files:
      good_files[kind] = _write_good(make_weights, kind, good_files['folder'])
      assert _load(good_files[kind]).model['num_classes'] == 5
    source = good_files[kind]
    path = tmp_path / source.name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
    breaks(path)
    tracemalloc.start()
    start = time.process_time()
    try:
      with pytest.raises(UserError) as e:
        _load(path)
      seconds = time.process_time() - start
      peak = tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()
    message = str(e.value)
    assert str(path) in message or 'config' in message
    assert len(message) < 4000
    assert 'weights_only' not in message
    lines = message.split('\n')  # Lists of parameters have a line for each.
    assert all(line.startswith('  ') for line in lines[1:])
    assert not [c for c in message if unicodedata.category(c) == 'Cc'][
      len(lines) - 1 :
    ]
    assert seconds < max_seconds
    assert peak < max_bytes

  return check


def _write_good(make_weights, kind, folder):
  preprocess = dict(
    image_size=(32, 32),
    ops="decode|resize(32, method='bicubic')",
    device_ops="normalize('imagenet')",
  )
  weights = make_weights(preprocess=preprocess, activation='gelu')
  weights = dataclasses.replace(weights, class_names=list('abcde'))
  path, format = folder / kind, kind
  if kind in ('ours', 'npz'):
    path = folder / {'ours': 'x.safetensors', 'npz': 'x.npz'}[kind]
    format = None
  elif kind == 'pth':
    torch = pytest.importorskip('torch')
    catalog.save(weights, path, format='timm')
    arrays = safetensors.numpy.load_file(path / 'model.safetensors')
    path = folder / 'x.pth'
    torch.save({k: torch.from_numpy(a) for k, a in arrays.items()}, path)
    return path
  options = dict(allow_note_only=True) if kind == 'npz' else {}
  catalog.save(weights, path, format=format, **options)
  return path


def _load(path):
  model = dict(num_heads=3) if path.suffix == '.pth' else None
  return catalog.load(path, model=model)
