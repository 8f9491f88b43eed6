r"""Few-shot, k-NN and linear evaluation of the features of any weights.

  python -m vit_jax.main --workdir=runs/judged \
    --config=configs/evaluate.py:model=augreg-B/16,data=/data/pets

  model       what vit_jax.load takes: a published name
              (pretrained/published.py lists them), the folder of a run of
              yours, a file (.safetensors, .npz, .pth), a folder of timm or
              Hugging Face
  weights     where the weights are, if `model` does not say it
  data        /path with train/<class>/ and test/<class>/ (or val/), or with
              <class>/ alone; or a dataset of TFDS with num_classes
              (configs/common_data.py)
  train, test    splits; the test images are those of test/, or else of val/, or
              else held out of the others
  resolution  in pixels; that of a run and of a file of ours, else 224. Position
              tables are resized
  data_dir    of TFDS

Nothing is trained but the linear classifiers: the run has no steps, and its
metrics are a row of `metrics.jsonl`. The protocols are those of big_vision
(fewshot), DINO (knn) and CLIP (linear_probe). The same sections under
`config.evals` of any recipe, with `every_epochs`, judge a model while it is
trained.
"""

import ml_collections

from vit_jax.configs import common, common_data, common_weights


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; options are in the header of this file."""
  options = common.parse_arg(
    arg,
    model='augreg-B/16',
    weights=None,
    data='cifar10',
    num_classes=0,
    train=None,
    test=None,
    resolution=0,
    data_dir=None,
    smoke=False,
  )
  num_classes = common_data.num_classes(options.data, options.num_classes)
  train, val, test = common_data.splits(options.data)
  model, device_ops, size = common_weights.model_of(
    options.model, 224, resolution=options.resolution
  )

  def data(split):
    return common_data.images(options.data, split, options.data_dir)

  splits = dict(
    data_train=data(options.train or train),
    data_test=data(options.test or test or val),
  )
  ops = (
    f"decode(dct='fast')|resize_small({round(size * 256 / 224)}, "
    f"method='area', truncate=True)|central_crop({size})"
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
    data=splits['data_train'], ops=ops, batch_size=32, **device_ops
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
