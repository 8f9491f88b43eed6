"""Device ops on 8 devices: equality to one device, and exchanged images."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.data import device_ops_language
from vit_jax.parallel import mesh as mesh_lib

B, SIZE = 64, 16
BEFORE = "flip_lr|normalize('imagenet')|random_erasing(0.5, mode='pixel')"
COLLECTIVE = re.compile(
  r'= \(?(\w+)\[([\d,]*)\].*? '
  r'(?:all-\w+|collective-\w+|reduce-scatter|ragged-all-to-all)[\w-]*\('
)


def batch():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (B, SIZE, SIZE, 3), np.uint8)
  return {'image': image, 'label': rng.integers(0, 5, B).astype(np.int32)}


def sent(compiled) -> dict[str, int]:
  """Returns the largest collective of each dtype, in elements of a device."""
  largest = {}
  for dtype, shape in COLLECTIVE.findall(compiled.as_text()):
    size = math.prod(map(int, filter(None, shape.split(','))))
    largest[dtype] = max(largest.get(dtype, 0), size)
  return largest


def jitted(text):
  op = device_ops_language.parse(text, num_classes=5)
  return jax.jit(functools.partial(op, train=True))


@functools.cache
def before_mixing():
  return jitted(BEFORE)(batch(), jax.random.key(0))


@pytest.mark.parametrize(
  'mix, rows_sent',
  [
    # 8 rows lie on a device.
    ('mixup_cutmix(0.8, 1.0, group_size=4, label_smoothing=0.1)', 0),
    ("mixup_cutmix(0.8, 1.0, mode='elem', group_size=32)", 8),
    ("mixup(0.2, partner='roll', dominant=True)", 1),
  ],
)
def test_mixing_on_eight_devices_equals_one_and_sends_partners(mix, rows_sent):
  key = jax.random.key(0)
  # One device, one op after the other: erased pixels are mixed as they are.
  want = jitted(mix)(before_mixing(), key)

  mesh = mesh_lib.make_mesh(data=4, fsdp=2)
  rows = mesh_lib.batch_sharding(mesh)
  split = jax.device_put(batch(), rows)
  compiled = jitted(f'{BEFORE}|{mix}').lower(split, key).compile()
  got = compiled(split, key)
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, atol=2e-6, err_msg=name)
  assert got['image'].sharding.is_equivalent_to(rows, 4)

  pixels = SIZE * SIZE * 3
  largest = sent(compiled)
  if rows_sent:
    assert largest.pop('f32') == rows_sent * pixels
  # Draws and labels may be exchanged: a few numbers for each row.
  assert max(largest.values(), default=0) <= B * 5 < pixels, largest
  # No device computes the noise of all rows.
  assert f'f32[{B},{SIZE},{SIZE},3]' not in compiled.as_text()


def test_flips_crops_and_erasing_send_no_image():
  text = f'random_crop(padding=2, pad_mode="reflect")|{BEFORE}'
  key = jax.random.key(0)
  want = jitted(text)(batch(), key)
  rows = mesh_lib.batch_sharding(mesh_lib.make_mesh())
  split = jax.device_put(batch(), rows)
  compiled = jitted(text).lower(split, key).compile()
  np.testing.assert_allclose(
    compiled(split, key)['image'], want['image'], atol=2e-6
  )
  assert max(sent(compiled).values(), default=0) <= B * 5


def test_the_check_detects_sent_images():
  rows = mesh_lib.batch_sharding(mesh_lib.make_mesh())
  split = jax.device_put(batch(), rows)
  mixed = jax.jit(lambda x: x['image'] + jnp.flip(x['image'] / 255, 0))
  compiled = mixed.lower(split).compile()
  assert sent(compiled)['f32'] == 8 * SIZE * SIZE * 3
