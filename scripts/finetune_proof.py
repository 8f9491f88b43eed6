"""Compare fine-tuning with training from scratch on real images.

  python scripts/finetune_proof.py --data=/data/cifar10 --workdir=runs/proof

A small ViT learns five classes of CIFAR-10 (`train/<class>/*.jpg`, `test/...`)
at 32 pixels. From its weights, and from scratch, the same model then learns the
other five at 48 pixels: 1,000 images, 100 steps, three learning rates each, the
best chosen on 1,000 others. Prints its commands, and at the end a table in
Markdown with the accuracy on the 5,000 test images. About 12 minutes of one CPU
core; the same command continues where it was killed.
"""

import argparse
import pathlib
import sys

import runs

_CLASSES = {
  'pretrain': ('airplane', 'automobile', 'bird', 'cat', 'deer'),
  'tune': ('dog', 'frog', 'horse', 'ship', 'truck'),
}
_SIZES = dict(num_classes=5, width=64, depth=4, mlp_dim=128)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data', required=True, help='CIFAR-10 in folders')
  parser.add_argument('--workdir', required=True)
  args = parser.parse_args()
  workdir = pathlib.Path(args.workdir)
  data = pathlib.Path(args.data).expanduser().resolve()
  folders = {name: _link(data, workdir / 'data' / name) for name in _CLASSES}
  pretrained = workdir / 'pretrained'
  runs.run(
    'train',
    f'--config=configs/cifar10.py:folder:{folders["pretrain"]}',
    f'--workdir={pretrained}',
    *(f'--config.model.{key}={value}' for key, value in _SIZES.items()),
    '--config.total_epochs=4',
    '--config.evals.test.every_epochs=4',
    '--config.pictures={}',
  )
  recipe = (
    f'configs/finetune.py:model={pretrained},dataset=folder:{folders["tune"]},'
    'num_classes=5,resolution=48,crop=resmall,steps=100,train=train[:1000],'
    'val=train[1000:2000],test=test'
  )
  rows = []
  for name, options, rates, changes in (
    ('fine-tuned', '', '0.01,0.03,0.1', []),
    (
      'from scratch',
      ',optimizer=adamw',
      '0.001,0.003,0.01',
      ['--config.init_from=[]'],
    ),
  ):
    folder = workdir / name.replace(' ', '_')
    runs.run(
      'sweep',
      f'--config={recipe}{options}',
      f'--workdir={folder}',
      f'--sweep.optimizer.learning_rate={rates}',
      '--config.input.batch_size=64',
      '--config.evals.val.every_steps=100',
      '--config.pictures={}',
      *changes,
    )
    rows.append(_row(name, folder))
  print('| 100 steps on 1,000 images | learning rate | val | test top-1 |')
  print('|---|---|---|---|')
  print('\n'.join(rows))


def _link(data: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Returns a folder with links to five classes of every split."""
  for split in ('train', 'test'):
    (folder / split).mkdir(parents=True, exist_ok=True)
    for name in _CLASSES[folder.name]:
      source, link = data / split / name, folder / split / name
      if not source.is_dir():
        sys.exit(f'no folder {source}; --data has train/<class>, test/<class>')
      if not link.is_symlink():
        link.symlink_to(source)
  return folder


def _row(name: str, folder: pathlib.Path) -> str:
  """Returns a row of the table for the run that is best on `val`."""
  last = {run.name: runs.last_metrics(run) for run in folder.iterdir()}
  best = max(last, key=lambda run: last[run]['val/top1'])
  numbers = (100 * last[best][f'{split}/top1'] for split in ('val', 'test'))
  cells = [name, best.partition('=')[2], *(f'{x:.1f} %' for x in numbers)]
  return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
  main()
