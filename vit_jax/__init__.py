"""Vision Transformers in JAX and Flax: train, evaluate and use them.

Use a model, from a run, a file or by the name of published weights:

    import vit_jax

    model = vit_jax.load('augreg-B/16-i1k-384')
    for name, probability, _ in model.predict('cat.jpg', top_k=3):
      print(f'{probability:.1%} {name}')
    features = model(['cat.jpg', 'dog.png'])['features']  # [2, D]

    vit_jax.list_models('*B/16*')  # names of published weights

Train one, from a shell:

    python -m vit_jax train --config=configs/quickstart.py --workdir=runs/quick
"""

import typing as _typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

if _typing.TYPE_CHECKING:
  import os

  import jax

  from vit_jax.inference.model import Model

__version__ = '0.1.0'
__all__ = ['evaluate', 'list_models', 'load']


def load(
  source: 'str | os.PathLike',
  *,
  model: Mapping[str, Any] | None = None,
  step: int | str | None = None,
  ema: bool | None = None,
  ops: str | None = None,
  device_ops: str | None = None,
  class_names: 'str | os.PathLike | Sequence[str] | None' = None,
  loss: str | None = None,
  image_size: int | Sequence[int] | None = None,
  batch_size: int = 8,
  mesh: 'jax.sharding.Mesh | None' = None,
  weights_dir: 'str | os.PathLike | None' = None,
  on_log: Callable[[str], Any] = print,
  download_seconds: float = 4 * 3600,
  **options: Any,
) -> 'Model':
  """Returns a model that is ready for images.

  Example:

      model = vit_jax.load('runs/pets')
      model.predict('cat.jpg', top_k=3)  # [Prediction('Bengal', 0.97, 5), ...]
      model(['cat.jpg', 'dog.png'])['features']  # float32 [2, D]
      model.save('pets.safetensors')
      model.module, model.params  # for a loop of your own

  `help(vit_jax.inference.model.Model)` describes what is returned, after
  `import vit_jax.inference.model`.

  Nothing that a file names is imported: a model or ops outside this package are
  used only if `model`, `ops` or `device_ops` name them here.

  Args:
    source: a training run, a file (.npz, .safetensors, .pth), a folder of timm
      or Hugging Face, or the name of published weights, which are downloaded:
      one of `list_models()`, a name of timm ('vit_base_patch16_224'), a
      repository of the Hugging Face Hub ('google/vit-base-patch16-224'), an
      address. A path that exists comes before a name.
    model: keys of the model section that replace what is found, such as
      `{'dtype': 'bfloat16'}`.
    step: of a run, which checkpoint: a number, 'best' or 'newest'; None is the
      best if the run kept it (`config.checkpoint.keep_best`), or the newest.
    ema: of a run, whether to take the averaged weights; None takes them if
      there are any.
    ops: how an image is prepared on the host, such as `'decode|resize(224)'`;
      None is what the weights were evaluated with. Photos are resized to the
      size that the model needs where that does not do it. Of a run with
      several evaluations `evaluation='val'` names the one to take.
    device_ops: how it is normalised, such as `'normalize(-1, 1)'`; likewise.
    class_names: a list, a file, or 'imagenet'; None takes those that come with
      the weights.
    loss: 'softmax' or 'sigmoid': how logits become probabilities; None is what
      the weights were trained with, softmax if that is not known.
    image_size: a side of square images in pixels, or (height, width): the size
      that the model is given, in place of that of the weights. Positions are
      resized, and so are the sizes in the weights' own host ops.
    batch_size: batch size of the compiled program, rounded up to a multiple of
      the number of devices. Fewer images cost as much as that many, more are
      processed in turns: 1 is best for single images, 32 and more for many.
    mesh: devices, from `vit_jax.parallel.mesh.make_mesh`; None is all of
      this process. Axes fsdp and tensor split a model that is too large for
      one.
    weights_dir: the folder of downloads; None is $VIT_JAX_WEIGHTS or
      ~/.cache/vit_jax.
    on_log: called with a line of text for every download, and where images are
      resized by default.
    download_seconds: after which time to give up a download.
    **options: `format`, the name of what reads the weights, such as a module
      of your own; options of the reader of a format: `grid` (rows and columns
      of the position table), `entry` (which state dict of several in a .pth),
      `evaluation` (of a run, whose ops to take).

  Raises:
    UserError: nothing is found, it cannot be read, or an option does not fit.
  """
  return _call('vit_jax.inference.model', 'load', **locals())


def evaluate(
  weights: 'str | os.PathLike',
  evals: Mapping[str, Mapping[str, Any]] | None = None,
  *,
  names: Sequence[str] | None = None,
  batch_size: int = 128,
  ops: str | None = None,
  device_ops: str | None = None,
  image_size: int | Sequence[int] | None = None,
  mesh: 'jax.sharding.Mesh | None' = None,
  model: Mapping[str, Any] | None = None,
  step: int | str | None = None,
  ema: bool | None = None,
  weights_dir: 'str | os.PathLike | None' = None,
  on_log: Callable[[str], Any] = print,
  **options: Any,
) -> dict[str, float]:
  """Returns the metrics of evaluations of any weights, such as `val/top1`.

  Example:

      vit_jax.evaluate('runs/pets')  # as the run itself does
      vit_jax.evaluate('augreg-B/16-i1k-384', {'val': {
        'name': 'classification',
        'data': {'name': 'image_folder', 'data_dir': '/data/i1k',
                 'split': 'val'}}})

  Nothing is trained and nothing is written; the run may still be training. The
  forward pass is the model's, which matters where an objective of your own has
  another `predict`.

  Args:
    weights: as for `load`.
    evals: as `config.evals`; a section without `ops` gets those of the weights.
      None takes the evaluations of the run that the weights are from.
    names: which of them; None is all.
    batch_size: of sections that have none; it does not change the results.
    ops, device_ops, image_size: see `load`.
    model, step, weights_dir, on_log, **options: see `load`.
    mesh: from `vit_jax.parallel.mesh.make_mesh`; None shards the batch over all
      devices.
    ema: of a run, whether to take the averaged weights. None goes by the key
      `weights` of the section; without it a run's own evaluation takes what is
      trained, as in training, and another one the average if there is one.

  Raises:
    UserError: weights, sections, options or data that do not fit.
  """
  return _call('vit_jax.training.evaluate', 'evaluate', **locals()).metrics


def list_models(pattern: str = '*') -> list[str]:
  """Returns the names of published weights that `load` takes.

  Example:

      list_models('*B/16*')  # ['augreg-B/16', 'augreg-B/16-i1k-384', ...]
      list_models('vit_base*')  # names of timm

  docs/models.md has a table of them. `load` takes more: repositories of the
  Hugging Face Hub, tags of timm, and the names of all AugReg checkpoints.

  Args:
    pattern: as in `fnmatch`: `*` is any text, `?` any character, `[ab]` one of
      these; upper and lower case are the same.
  """
  import importlib

  module = importlib.import_module('vit_jax.pretrained.catalog')
  return module.names(pattern)


def _call(module: str, function: str, *, options: Mapping[str, Any], **keys):
  """Imports a module now: `import vit_jax` costs nothing, jax takes seconds."""
  import importlib

  from vit_jax.parallel import platforms

  platforms.skip_absent_tpu()
  return getattr(importlib.import_module(module), function)(**keys, **options)
