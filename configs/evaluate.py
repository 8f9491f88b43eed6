r"""Few-shot, k-NN and linear evaluation of the features of any weights.

  python -m vit_jax evaluate --weights=augreg-B/16 \
    --config=configs/evaluate.py:/data/pets

  data        /path with train/<class>/ and test/<class>/ (or val/), or with
              <class>/ alone; or a dataset of TFDS with num_classes
              (configs/common_data.py)
  train, test    splits; the test images are those of test/, or else of val/, or
              else held out of the others
  resolution  in pixels; position tables are resized. By default few-shot
              images have 224, and those of the two others are prepared as the
              weights say
  images      'protocol' (default), or 'weights': few-shot images are prepared
              as the weights say too; for models of small images
  data_dir    of TFDS

A recipe for the command `evaluate` alone: nothing is trained but the linear
classifiers. The protocols are those of big_vision (fewshot), DINO (knn) and
CLIP (linear_probe). The same sections in `config.evals` of any recipe, with
`every_epochs`, evaluate a model during its training.

Few-shot images are those of big_vision's configs/common_fewshot.py: both sides
become 256 pixels, whatever the aspect ratio was, and the centre of 224 is
cropped. For the two others `resolution` resizes the shorter side to 256/224 of
it and crops the centre.

Differs from the papers' code: DINO resizes bicubically, and so do the weights
that say so; with `resolution` all images are averaged over areas, as in
big_vision's classification.
"""

import ml_collections

from vit_jax.configs import common, common_data, common_evals


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; options are in the header of this file."""
  options = common.parse_arg(
    arg,
    data='cifar10',
    num_classes=0,
    train=None,
    test=None,
    resolution=0,
    images=('protocol', 'weights'),
    data_dir=None,
  )
  common_data.num_classes(options.data, options.num_classes)
  train, val, test = common_data.splits(options.data)

  def data(split):
    return common_data.images(options.data, split, options.data_dir)

  section = dict(
    data_train=data(options.train or train),
    data_test=data(options.test or test or val),
  )
  size = options.resolution
  if size:
    section['ops'] = (
      f"decode(dct='fast')|resize_small({round(size * 256 / 224)}, "
      f"method='area', truncate=True)|central_crop({size})"
    )
  config = ml_collections.ConfigDict()
  config.evals = {
    name: dict(name=name, **section)
    for name in ('fewshot', 'knn', 'linear_probe')
  }
  if options.images == 'protocol':
    config.evals.fewshot.ops = common_evals.fewshot_ops(size or 224)
  return config
