"""Check evaluation and export of a model against other code on real images.

  python scripts/handover_proof.py --weights=runs/tuned --data=/data/cifar10

`--weights` is whatever `vit_jax.load` takes, a classifier; `--data` has
`train/<class>/*.jpg` and `test/<class>/*.jpg`. Two comparisons:

* the few-shot accuracies of our evaluator with those that NumPy computes in
  float64 from the same features: for every number of shots the mean over the
  seeds, and for the first seed the class of each test image;
* the classes of all test images by us with those by timm and by transformers,
  each reading what we exported for it. All see the same pixels, which are ours.

Needs the parity extra. Exit code 1 where anything differs.
"""

import argparse
import os
import pathlib
import sys
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import fix_torchvision
import jax
import numpy as np
import parity_table
from fewshot_oracle import ridge_classes

import vit_jax
from vit_jax import lookup
from vit_jax.data import device_ops_language, ops_language
from vit_jax.parallel import mesh as mesh_lib

_SHOTS = (1, 5, 10, 25)
_NUM_SEEDS = 3
_BATCH = 100


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--weights', required=True)
  parser.add_argument('--data', required=True, help='a folder of images')
  args = parser.parse_args()
  fix_torchvision.fix()
  model = vit_jax.load(args.weights, batch_size=_BATCH)
  print(f'{args.weights}: {model}')
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    splits = {s: _answers(model, args.data, s) for s in ('train', 'test')}
    same = _compare_fewshot(splits, folder)
    same &= _compare_exports(model, args.data, splits['test'], folder)
  sys.exit(0 if same else 1)


def _source(data: str, split: str):
  section = dict(name='image_folder', data_dir=data, split=split)
  return lookup.build('data/sources', section, 'Source')


def _answers(model, data: str, split: str) -> dict[str, np.ndarray]:
  """Returns `features`, `logits` and `label` of a split, one row an image."""
  source = _source(data, split)
  examples = [source[i] for i in range(len(source))]
  images = [example['image'] for example in examples]
  out = model(images, outputs=('features', 'logits'))
  return out | {'label': np.asarray([e['label'] for e in examples])}


def _compare_fewshot(splits: dict, folder: pathlib.Path) -> bool:
  train, test = splits['train'], splits['test']
  num_classes = int(train['label'].max()) + 1
  print(
    f'\nfew-shot on {len(test["label"]):,} test images, supports from '
    f'{len(train["label"]):,}, {num_classes} classes, {_NUM_SEEDS} seeds\n'
  )
  print('| shots | ours | NumPy | test images with another class |')
  print('|---|---|---|---|')
  ours = _evaluate(splits, num_classes, folder, _SHOTS, _NUM_SEEDS)
  all_same = True
  for shots in _SHOTS:
    answers = [
      ridge_classes(
        (train['features'], train['label']),
        test['features'],
        num_classes,
        shots,
        seed=seed,
      )
      for seed in range(_NUM_SEEDS)
    ]
    numpy = np.mean([x == test['label'] for x in answers])
    # Where the labels are NumPy's answers, a hit is the same answer.
    relabelled = dict(splits, test=dict(test, label=answers[0]))
    hits = _evaluate(relabelled, num_classes, folder, (shots,), 1)
    others = round((1 - hits[f'{shots}shot']) * len(test['label']))
    found = ours[f'{shots}shot']
    all_same &= others == 0 and abs(found - numpy) < 1e-6
    print(f'| {shots} | {found:.6f} | {numpy:.6f} | {others} |')
  return all_same


def _evaluate(splits, num_classes, folder, shots, num_seeds) -> dict:
  """Runs our evaluator on images of 1 x 1 pixel whose channels are features."""
  arrays = {}
  for split, found in splits.items():
    arrays[f'{split}_images'] = found['features'][:, None, None, :]
    arrays[f'{split}_labels'] = found['label']
  np.savez(folder / 'features.npz', **arrays)
  data = dict(
    name='arrays', path=str(folder / 'features.npz'), num_classes=num_classes
  )
  evaluator = lookup.build(
    'evaluators',
    dict(
      name='fewshot',
      data_train=dict(data, split='train'),
      data_test=dict(data, split='test'),
      ops='',
      batch_size=1000,
      shots=shots,
      num_seeds=num_seeds,
    ),
    'Evaluator',
    lambda params, batch: {'features': batch['image'][:, 0, 0, :]},
    mesh_lib.make_mesh(),
  )
  return evaluator.run({})


def _compare_exports(model, data: str, test: dict, folder) -> bool:
  images = _pixels(model, data)
  ours = test['logits']
  top = np.sort(ours, axis=1)
  print(
    f'\nclasses of {len(ours):,} test images; ours are right for '
    f'{np.mean(ours.argmax(axis=1) == test["label"]):.2%}; the smallest lead '
    f'of a best logit is {np.min(top[:, -1] - top[:, -2]):.1e}\n'
  )
  print('| exported to | same class | largest difference of a logit |')
  print('|---|---|---|')
  all_same = True
  for target in ('timm', 'huggingface'):
    model.save(folder / target, format=target)
    theirs = parity_table.load(folder / target, target)
    logits = np.concatenate(
      [
        parity_table.reference(theirs, images[i : i + _BATCH])['logits']
        for i in range(0, len(images), _BATCH)
      ]
    )
    same = np.sum(logits.argmax(axis=1) == ours.argmax(axis=1))
    all_same &= same == len(ours)
    print(
      f'| {target} | {same:,} of {len(ours):,} | '
      f'{np.abs(logits - ours).max():.1e} |'
    )
  return bool(all_same)


def _pixels(model, data: str) -> np.ndarray:
  """Returns the test images as the model takes them, `[N, H, W, C]`."""
  read = ops_language.parse(model.weights.preprocess['ops'])
  normalize = device_ops_language.parse(model.weights.preprocess['device_ops'])
  source, rng = _source(data, 'test'), np.random.default_rng(0)
  images = np.stack([read(source[i], rng)['image'] for i in range(len(source))])
  batch = normalize({'image': jax.numpy.asarray(images)}, None, train=False)
  return np.asarray(batch['image'])


if __name__ == '__main__':
  main()
