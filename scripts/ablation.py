r"""Measure the effect of each augmentation on CIFAR-10, at equal epochs.

  python scripts/ablation.py --data=folder:/data/cifar10 \
    --workdir=runs/ablation --split='train[:10%]' --epochs=20

Trains the recipe configs/cifar10.py from scratch once for each row of the
table, which it prints in Markdown at the end; each row has what the row before
has and one thing more. The last row is the average of the weights of the run
before it. The same command continues where it was killed.
"""

import argparse
import pathlib

import runs

_CROP = 'decode|random_crop(32, padding=4)|flip_lr'
_RANDAUGMENT = f"{_CROP}|rand_augment('rand-m9-mstd0.5-inc1')"
_PLAIN = 'normalize(-1, 1)'
_MIX = f'{_PLAIN}|mixup_cutmix(0.8, 1.0)'
# name, host ops, device ops
_ROWS = (
  ('no augmentation', 'decode', _PLAIN),
  ('crop and flip', _CROP, _PLAIN),
  ('+ RandAugment', _RANDAUGMENT, _PLAIN),
  ('+ mixup or CutMix', _RANDAUGMENT, _MIX),
  ('+ random erasing', _RANDAUGMENT, f'{_MIX}|random_erasing(0.25)'),
)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data', required=True, help='as the recipe takes it')
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--size', default='tiny', help='of the recipe')
  parser.add_argument('--split', default='train', help='that is learned')
  parser.add_argument('--epochs', type=float, help='default: the recipe')
  args = parser.parse_args()
  lines = ['| augmentation | train loss | test top-1 |', '|---|---|---|']
  for number, (name, ops, device_ops) in enumerate(_ROWS):
    workdir = pathlib.Path(args.workdir) / f'{number}'
    runs.run(
      'train',
      f'--config=configs/cifar10.py:{args.data},size={args.size}',
      f'--workdir={workdir}',
      f'--config.input.data.split={args.split}',
      f'--config.input.ops={ops}',
      f'--config.input.device_ops={device_ops}',
      "--config.evals.test.weights=('params', 'ema')",
      '--config.evals.test.every_epochs=None',
      '--config.pictures={}',
      *([f'--config.total_epochs={args.epochs}'] if args.epochs else []),
    )
    last = runs.last_metrics(workdir)
    cells = [name, f'{last["train/loss"]:.3f}', f'{last["test/top1"]:.1%}']
    lines.append(f'| {" | ".join(cells)} |')
  lines.append(f'| + average of the weights | | {last["test_ema/top1"]:.1%} |')
  print('\n'.join(lines))


if __name__ == '__main__':
  main()
