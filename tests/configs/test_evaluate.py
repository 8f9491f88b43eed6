"""configs/evaluate.py: any weights are judged without a step of training."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from vit_jax import main
from vit_jax.configs import evaluate
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


def test_weights_in_a_file_are_judged_by_three_protocols(
  folder, tiny_weights, tmp_path
):
  ours.write(tiny_weights(num_classes=5), tmp_path / 'w.safetensors')
  config = f'{RECIPE}:model={tmp_path / "w.safetensors"},data={folder}'
  workdir = tmp_path / 'run'
  assert not main.main([f'--config={config}', f'--workdir={workdir}'])
  (row,) = (workdir / 'metrics.jsonl').read_text().splitlines()
  row = json.loads(row)
  # Random features tell three colours apart.
  assert row['fewshot/10shot'] > 0.8
  assert row['knn/10nn'] > 0.8
  assert row['linear_probe/top1'] > 0.8
  assert not list(workdir.glob('checkpoints/[0-9]*'))


def test_a_dataset_without_a_known_number_of_classes_is_refused():
  with pytest.raises(ValueError, match=r'data=my_data .*add num_classes='):
    evaluate.get_config('dataset=my_data')
  config = evaluate.get_config('dataset=my_data,num_classes=7')
  assert config.model.num_classes == 7


def test_a_published_model_is_taken_at_a_multiple_of_its_patch():
  for model in ('augreg-B/16', 'dinov2-S/14'):
    config = evaluate.get_config(f'model={model}')
    assert config.input.ops.endswith('central_crop(224)')
  assert config.input.device_ops == "normalize('imagenet')"
