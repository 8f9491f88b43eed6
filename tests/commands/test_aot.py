"""`python -m vit_jax aot` of tiny models: the real compiler, no TPU."""

import json

import jax
import jax.numpy as jnp
import pytest

from vit_jax.commands import aot
from vit_jax.compiler import topology as topology_lib
from vit_jax.parallel import compiler_options, mesh as mesh_lib

_RECIPE = """
import ml_collections

def get_config(arg=''):
  config = ml_collections.ConfigDict()
  config.total_epochs = 3.0
  config.model = dict(
      name='vit', variant='mu/8', num_classes=5, pooling='mean',
      dtype='bfloat16')
  config.objective = dict(name='supervised')
  config.input = dict(
      data=dict(name='image_folder', data_dir='/absent', split='train'),
      ops='decode|random_resized_crop(16)|flip_lr',
      device_ops='normalize(-1, 1)', batch_size=64)
  config.optimizer = dict(name='adamw', learning_rate=1e-3, warmup_epochs=1.0)
  return config
"""
# Of mu/8 for 16x16x3: embedding, positions, block, norms, head.
_NUM_PARAMS = (
  193 * 32 + 128 + (4 * 33 * 32 + 33 * 128 + 129 * 32) + 6 * 32 + 33 * 5
)


@pytest.fixture
def call(tmp_path, capsys):
  """Returns `call(*argv) -> (exit code, stdout, stderr)`."""
  path = tmp_path / 'recipe.py'
  path.write_text(_RECIPE)

  def run(*argv):
    code = aot.main([f'--config={path}', *argv])
    return code, *capsys.readouterr()

  return run


def test_json_has_the_numbers_of_a_step_over_all_chips(call):
  code, out, _ = call('--topology=v5e-8', '--format=json')
  found = json.loads(out.splitlines()[-1])
  assert code == 0
  assert found['num_params'] == _NUM_PARAMS
  assert found['mesh'] == dict(data=8, fsdp=1, tensor=1)
  assert (found['batch_size'], found['images_per_chip']) == (64, 8)
  assert 0 < found['peak_memory_bytes'] < found['hbm_bytes'] == 16 * 2**30
  # Gradients of all parameters in 2 or 4 bytes each, and two metrics.
  reduced = {c['kind']: c for c in found['collectives']}['all-reduce']
  assert list(reduced['axes']) == ['data']
  assert 2 * _NUM_PARAMS <= reduced['bytes'] <= 5 * _NUM_PARAMS
  seconds = found['seconds']
  assert all(seconds[p] > 0 for p in ('forward', 'backward', 'optimizer'))
  assert found['step_seconds'] == pytest.approx(sum(seconds.values()))
  assert found['images_per_second_per_chip'] == pytest.approx(
    8 / found['step_seconds']
  )
  assert 0 < found['mfu'] < 1


def test_table_of_split_parameters_on_two_slices_of_one_recipe(call):
  code, out, _ = call(
    '--topology=v5e-4', '--slices=2', '--per_chip_batch=2',
    '--config.mesh.fsdp=4', '--config.model.width=128',
    '--config.sharding.min_size=1',
  )  # fmt: skip
  lines = dict(
    line.strip().split('  ', 1)
    for line in out.splitlines()
    if '  ' in line.strip()
  )
  assert code == 0
  assert lines['mesh'].strip() == 'data=2 x fsdp=4'
  assert lines['batch'].strip() == '16, 2 a chip'
  assert any(name.startswith('all-gather over fsdp') for name in lines)


def test_a_kernel_has_the_time_of_its_schedule(call):
  _, out, _ = call(
    '--topology=v5e-1', '--format=json', '--config.model.width=128'
  )
  found = json.loads(out)
  kernels = {kernel['name']: kernel for kernel in found['kernels']}
  assert sorted(kernels) == ['attention_backward', 'attention_forward']
  for kernel in kernels.values():
    assert (kernel['calls'], kernel['iterations']) == (1, 64)
    assert 50 < kernel['bundles'] < 10_000
  in_kernel = 64 * kernels['attention_forward']['bundles'] / 1.5e9
  assert found['seconds']['forward'] > in_kernel


# The backward pass needs no second forward kernel where products are kept.
@pytest.mark.parametrize(
  ('remat', 'calls'), [('full', 2), ('dots_with_no_batch_dims_saveable', 1)]
)
def test_remat_of_products_keeps_the_kernel_outputs(call, remat, calls):
  _, out, _ = call(
    '--topology=v5e-1', '--format=json', '--config.model.width=128',
    f'--config.model.remat={remat}',
  )  # fmt: skip
  kernels = json.loads(out)['kernels']
  counted = sum(k['calls'] for k in kernels if 'forward' in k['name'])
  assert counted == calls
  # Also of the one that the backward pass runs again.
  assert all(kernel['bundles'] for kernel in kernels)


def test_mismatches_are_reported_with_a_remedy(call):
  code, out, _ = call('--topology=v5e-1', '--per_chip_batch=4000000')
  assert code == 1
  assert 'DOES NOT FIT 16.00 GiB' in out
  assert '--config.micro_batches' in out.splitlines()[-1]


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--topology=v9-8'], 'v5p'),
    (['--topology=v5e-7'], 'power of two'),
    (['--topology=v5e-8', '--config.input.batch_size=63'], '64'),
    (['--topology=v5e-8', '--config.mesh.fsdp=3'], 'mesh'),
  ],
)
def test_mistakes_are_reported_by_name(call, argv, message):
  code, _, err = call(*argv)
  assert code == 2
  assert message in err


def test_without_libtpu_it_says_what_to_install(call, monkeypatch):
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  monkeypatch.setattr(
    topology_lib.importlib.util, 'find_spec', lambda name: None
  )
  code, _, err = call('--topology=v5e-8')
  assert code == 2
  assert "pip install 'vit_jax[aot]'" in err


@pytest.mark.parametrize('name', topology_lib.GENERATIONS)
def test_the_compiler_accepts_our_options_for_each_generation(name):
  topology_lib.schedules()
  topology = topology_lib.topology(f'{name}-8')
  devices = topology_lib.devices(topology)
  assert devices[0].device_kind == topology.generation.kind
  per_chip = topology.generation.devices_per_chip
  assert len(devices) == topology.num_chips * per_chip
  mesh = mesh_lib.make_mesh(fsdp=2, devices=devices)
  options = compiler_options.for_mesh(mesh)
  assert ('xla_enable_async_all_gather' in options) == (name != 'v5e')
  split = mesh_lib.batch_sharding(mesh)
  x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=split)
  lowered = jax.jit(jnp.sin).trace(x).lower(lowering_platforms=('tpu',))
  lowered.compile(compiler_options=options)
  with pytest.raises(jax.errors.JaxRuntimeError, match='No such compile opt'):
    lowered.compile(compiler_options=dict(options, xla_of_ours='1'))


def test_only_tpus_get_options():
  assert compiler_options.for_mesh(mesh_lib.make_mesh(fsdp=8)) is None


@pytest.mark.parametrize(
  ('name', 'grid'),
  [
    ('v3-32', (4, 4)),
    ('v5e-256', (16, 16)),
    ('v6e-8', (2, 4)),
    ('v4-8', (2, 2, 1)),
    ('v5p-512', (4, 8, 8)),
    ('tpu7x-16', (2, 2, 2)),
    ('v5p:2x2x4', (2, 2, 4)),
  ],
)
def test_topology_has_the_chips_of_cloud_tpu(name, grid):
  assert topology_lib.topology(name).grid == grid
