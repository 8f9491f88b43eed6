r"""Judges the features of any weights: few-shot, k-NN and a linear classifier.

  python -m vit_jax.main --workdir=runs/judged \
    --config=configs/evaluate.py:model=augreg-B/16,dataset=folder:/data/pets

  model       a published name (pretrained/published.py lists them), the folder
              of a run of yours, or a .safetensors file of ours
  weights     where they lie, if `model` alone does not say it
  dataset     folder:/path, which has /path/train/<class>/*.jpg and
              /path/test/...; or one of TFDS with num_classes
  train, test    splits
  resolution  in pixels, 224 if not given; position tables are resized. For a
              run and a file it must be given
  data_dir    of TFDS

Nothing is trained but the linear classifiers: the run has no steps, and its
metrics are a row of `metrics.jsonl`. The protocols are those of big_vision
(fewshot), DINO (knn) and CLIP (linear_probe). The same sections under
`config.evals` of any recipe, with `every_epochs`, judge a model while it is
trained.
"""

import ml_collections

from configs import common, common_weights


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; options are in the header of this file."""
  options = common.parse_arg(
    arg,
    model='augreg-B/16',
    weights=None,
    dataset='cifar10',
    num_classes=0,
    train='train',
    test='test',
    resolution=0,
    data_dir=None,
    smoke=False,
  )
  num_classes = common.num_classes(options.dataset, options.num_classes)
  model, device_ops, size = common_weights.model_of(options.model, 224)
  size = options.resolution or size
  if size is None:
    raise ValueError(f'model={options.model} needs resolution=, in pixels')
  splits = dict(
    data_train=common.images(options.dataset, options.train, options.data_dir),
    data_test=common.images(options.dataset, options.test, options.data_dir),
  )
  ops = (
    f"decode|resize_small({round(size * 256 / 224)}, method='area')"
    f'|central_crop({size})'
  )

  config = ml_collections.ConfigDict()
  config.total_steps = 0
  # The head is not read; a run needs one to be complete.
  config.model = dict(model, num_classes=num_classes)
  config.init_from = [
    dict(
      weights=options.weights or options.model,
      skip='(head|representation)/.*',
    )
  ]
  config.objective = dict(name='supervised')
  config.input = dict(
    data=splits['data_train'], ops=ops, device_ops=device_ops, batch_size=32
  )
  config.optimizer = dict(name='sgd', learning_rate=1.0, schedule='constant')
  config.evals = {
    name: dict(name=name, **splits, ops=ops)
    for name in ('fewshot', 'knn', 'linear_probe')
  }
  if options.smoke:
    config.init_from = []
    return common.smoke(config)
  return config
