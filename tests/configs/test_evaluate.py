"""configs/evaluate.py: any weights are evaluated by three protocols."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from vit_jax.commands import evaluate as command
from vit_jax.configs import evaluate
from vit_jax.data import ops_language
from vit_jax.pretrained.formats import vit_jax as ours

RECIPE = pathlib.Path(__file__).parents[2] / 'configs/evaluate.py'


@pytest.fixture
def folder(tmp_path):
  """Returns a folder of noise around a colour for each of three classes."""
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for label in range(3):
      (tmp_path / 'data' / split / f'{label}').mkdir(parents=True)
      for i in range(12):
        image = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
        image[..., label] += 100
        name = f'data/{split}/{label}/{i}.png'
        Image.fromarray(image).save(tmp_path / name)
  return tmp_path / 'data'


def test_weights_in_a_file_are_evaluated_by_three_protocols(
  folder, tiny_weights, tmp_path, capsys
):
  ours.write(tiny_weights(num_classes=5), tmp_path / 'w.safetensors')
  output = tmp_path / 'new/results.json'
  code = command.main(
    [
      f'--config={RECIPE}:{folder}',
      f'--weights={tmp_path / "w.safetensors"}',
      f'--output={output}',
    ]
  )
  assert not code, capsys.readouterr().err
  metrics = json.loads(output.read_text())['metrics']
  # Random features tell three colours apart.
  for name in ('fewshot/10shot', 'knn/10nn', 'linear_probe/top1'):
    assert metrics[name] > 0.8
  table = capsys.readouterr().out
  assert 'linear_probe' in table and f'{metrics["knn/10nn"]:.4f}' in table


def test_a_dataset_without_a_known_number_of_classes_is_refused():
  with pytest.raises(ValueError, match=r'data=my_data .*add num_classes='):
    evaluate.get_config('dataset=my_data')
  assert evaluate.get_config('dataset=my_data,num_classes=7').evals


def test_images_are_prepared_as_the_weights_say_unless_a_size_is_given():
  for name in ('knn', 'linear_probe'):
    assert 'ops' not in evaluate.get_config('cifar10').evals[name]
  section = evaluate.get_config('cifar10,resolution=224').evals.knn
  assert section.ops.endswith('central_crop(224)')
  assert 'resize_small(256,' in section.ops


def test_few_shot_images_are_squeezed_as_in_big_vision():
  ops = evaluate.get_config('cifar10').evals.fewshot.ops
  assert ops == evaluate.get_config('cifar10,resolution=224').evals.fewshot.ops
  # A white centre of 300 in a row of 400 pixels: the right third is cropped
  # away at most to 16 of 256 columns, and not to a square.
  raw = np.zeros((100, 400, 3), np.uint8)
  raw[:, 50:350] = 255
  rng = np.random.default_rng(0)
  out = ops_language.parse(ops)({'image': raw}, rng)['image']
  assert out.shape == (224, 224, 3)
  # Columns 32 to 224 of 256 are white.
  np.testing.assert_array_equal(
    out[0, :, 0] > 127, [0] * 16 + [1] * 192 + [0] * 16
  )
  small = evaluate.get_config('cifar10,resolution=32').evals.fewshot.ops
  assert 'resize(37,' in small and small.endswith('central_crop(32)')
  assert (
    'ops' not in evaluate.get_config('cifar10,images=weights').evals.fewshot
  )
