"""Files in, logits out: as with the preprocessing and model of transformers."""

import numpy as np
import PIL.Image
import pytest

import vit_jax


def test_a_folder_of_transformers_answers_as_there(tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  config = transformers.ViTConfig(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    image_size=32,
    patch_size=8,
    initializer_range=0.3,
    id2label={i: f'name {i}' for i in range(5)},
  )
  model = transformers.ViTForImageClassification(config).eval()
  processor = transformers.ViTImageProcessor(size=dict(height=32, width=32))
  model.save_pretrained(tmp_path)
  processor.save_pretrained(tmp_path)

  rng = np.random.default_rng(0)
  paths = [tmp_path / f'{i}.jpg' for i in range(3)]
  # None is tall: of those Pillow 13 makes other pixels than the versions before
  # it, and than we do.
  for path, size in zip(paths, ((60, 40), (97, 31), (32, 32)), strict=True):
    blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    PIL.Image.fromarray(blocks).resize(size).save(path)
  pictures = [PIL.Image.open(path).convert('RGB') for path in paths]
  with torch.no_grad():
    logits = model(**processor(pictures, return_tensors='pt')).logits.numpy()

  ours = vit_jax.load(tmp_path)
  # Both resize with Pillow; what remains is float32 in another order.
  np.testing.assert_allclose(ours(paths)['logits'], logits, atol=1e-4)
  assert np.ptp(logits, axis=0).min() > 0.1
  for found, row in zip(ours.predict(paths, top_k=1), logits, strict=True):
    assert found[0].name == f'name {row.argmax()}'
