"""Measure how far our ViT is from timm's and transformers' at equal weights.

  python scripts/parity_table.py

Each model of `parity_models` is saved as its library saves it, read by
`pretrained/formats/state_dict`, written again for timm and for transformers,
and loaded by their own loaders. The table, in Markdown, has the largest
difference of any output from ours, in float32 on a CPU. Needs the parity extra;
cases of a library that is not installed are left out.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import fix_torchvision
import jax
import numpy as np
from parity_models import CASES, HEADS, Case

from vit_jax import lookup, trees
from vit_jax.pretrained import blocks, catalog
from vit_jax.pretrained.formats import state_dict
from vit_jax.pretrained.weights import Weights


@dataclasses.dataclass(frozen=True)
class Row:
  """The largest differences of one case.

  Attributes:
    read: of our outputs from theirs, with their weights.
    written: of the outputs of what we wrote from ours, by format.
    size: mean magnitude of the outputs, which the differences go with.
  """

  read: float
  written: dict[str, float]
  size: float


def measure(case: Case, folder: pathlib.Path) -> Row:
  """Returns the differences of a case; uses `folder` for files.

  What is written for a library that is not installed is not measured.
  """
  image = np.random.default_rng(1).normal(size=(2, *case.image_size, 3))
  image = image.astype(np.float32)
  model = case.build()
  path, options = save(model, case, folder / 'theirs')
  model = model[0] if isinstance(model, tuple) else model
  weights = state_dict.read(path, **options)
  ours, theirs = outputs(weights, image), reference(model, image)
  written = {}
  for target in filter(installed, case.targets):
    catalog.save(weights, folder / target, format=target)
    loaded = reference(load(folder / target, target), image)
    written[target] = difference(ours, loaded)
  return Row(
    read=difference(ours, theirs),
    written=written,
    size=float(np.mean([np.abs(x).mean() for x in theirs.values()])),
  )


def save(model, case: Case, folder: pathlib.Path):
  """Returns where a model was saved, and the options for reading it."""
  if isinstance(model, tuple):
    import torch

    folder.mkdir(parents=True)
    torch.save(model[1], folder / 'checkpoint.pth')
    return folder / 'checkpoint.pth', dict(model=dict(num_heads=HEADS))
  if case.library == 'timm':
    import timm

    timm.models.save_for_hf(model, folder, safe_serialization=True)
  else:
    model.save_pretrained(folder)
  return folder, {}


def load(folder: pathlib.Path, library: str):
  """Returns the model that a library builds from what we wrote."""
  if library == 'timm':
    import timm

    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
  import transformers

  config = json.loads((folder / 'config.json').read_text())
  name = config['architectures'][0]
  options = dict(attn_implementation='eager', output_loading_info=True)
  if name == 'ViTModel' and 'pooler_output_size' not in config:
    options['add_pooling_layer'] = False
  model, info = getattr(transformers, name).from_pretrained(folder, **options)
  if info['missing_keys'] or info['unexpected_keys']:
    raise ValueError(f'transformers read {folder} with {info}')
  return model.eval()


def outputs(weights: Weights, image: np.ndarray) -> dict[str, np.ndarray]:
  """Returns the outputs of our model."""
  section = {**weights.model, 'scan': True}  # Compiles in a fifth of the time.
  model = lookup.build('models', section, 'Model')
  params = trees.unflatten(blocks.stack(weights.params))
  out = dict(jax.jit(model.apply)({'params': params}, image))
  prefix = [out.pop('prefix_tokens')] if 'prefix_tokens' in out else []
  out['tokens'] = np.concatenate([*prefix, out['tokens']], axis=1)
  return {name: np.asarray(array) for name, array in out.items()}


def reference(model, image: np.ndarray) -> dict[str, np.ndarray]:
  """Returns the outputs of a torch model by our names, those that it has."""
  import torch

  pixels = torch.tensor(image.transpose(0, 3, 1, 2))
  with torch.no_grad():
    if hasattr(model, 'forward_features'):
      out = dict(tokens=model.forward_features(pixels))
      out['features'] = model.forward_head(out['tokens'], pre_logits=True)
      if model.num_classes:
        out['logits'] = model(pixels)
    else:
      out = _transformers_outputs(model, pixels)
  return {name: array.numpy() for name, array in out.items()}


def _transformers_outputs(model, pixels):
  import torch

  options = {}
  if model.config.model_type == 'vit_mae':
    # Rising noise keeps the patches in order.
    options['noise'] = torch.arange(1e4)[None, : model.embeddings.num_patches]
    options['noise'] = options['noise'].expand(len(pixels), -1)
  backbone = getattr(model, model.base_model_prefix, model)
  backbone = getattr(model, 'vision_model', backbone)
  encoded = backbone(pixels, **options)
  out = dict(tokens=encoded.last_hidden_state)
  if getattr(encoded, 'pooler_output', None) is not None:
    if model is backbone or not hasattr(model, 'classifier'):
      out['features'] = encoded.pooler_output
  if hasattr(model, 'classifier'):
    out['logits'] = model(pixels).logits
  return out


def difference(ours, theirs) -> float:
  """Returns the largest absolute difference of the outputs that both have."""
  return max(
    float(np.abs(ours[name] - theirs[name]).max())
    for name in ours.keys() & theirs.keys()
  )


def installed(library: str) -> bool:
  """Whether a library, or the one of a format, is there with torch."""
  library = 'transformers' if library == 'huggingface' else library
  return all(importlib.util.find_spec(m) for m in ('torch', library))


def main():
  missing = [x for x in ('timm', 'transformers') if not installed(x)]
  if missing:
    print(
      f'left out, as {" and ".join(missing)} with torch are not installed: pip '
      "install -e '.[parity]'",
      file=sys.stderr,
    )
  fix_torchvision.fix()
  print('| source | model | read | to timm | to transformers |')
  print('|---|---|---|---|---|')
  for case in CASES:
    if not installed(case.library):
      continue
    with tempfile.TemporaryDirectory() as folder:
      row = measure(case, pathlib.Path(folder))
    cells = [case.source, case.what, f'{row.read:.1e}']
    for target in ('timm', 'huggingface'):
      error = row.written.get(target)
      cells.append('-' if error is None else f'{error:.1e}')
    print(f'| {" | ".join(cells)} |')


if __name__ == '__main__':
  main()
