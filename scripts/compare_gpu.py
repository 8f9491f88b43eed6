"""Training speed on a GPU beside timm under torch.compile, both in bfloat16.

  python scripts/compare_gpu.py
  python scripts/compare_gpu.py --variants=B/16:128,L/16:64 --steps=50

A step is forward, backward and AdamW on images that are on the device already:
ours is the one of vit_jax train (uint8 images, normalised in it), timm's is
compiled, under autocast, with fused AdamW. Each side is a process of its own;
they take turns. Prints a table in Markdown and, last, one JSON object. MFU
counts three forward passes of matrix products, the same for both, against the
device's bfloat16 peak. Needs the extra [parity] with a torch for the GPU, and
jax[cuda13]. On a CPU it runs too (`--variants=Ti/16:4 --eager`), but
means little.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

_NAMES = {'Ti': 'tiny', 'S': 'small', 'B': 'base', 'L': 'large'}
_SIDES = ('vit_jax', 'vit_jax, cudnn attention', 'timm')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--variants', default='S/16:512,B/16:256,L/16:128', help='variant:batch'
  )
  parser.add_argument('--steps', type=int, default=30, help='of a turn')
  parser.add_argument('--turns', type=int, default=3)
  parser.add_argument('--eager', action='store_true', help='no torch.compile')
  parser.add_argument('--side', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    _work(args)
    return
  report = []
  print('| model | batch | side | images/s | MFU |')
  print('|---|---|---|---|---|')
  for text in args.variants.split(','):
    found = {side: [] for side in _SIDES}
    for _ in range(args.turns):
      for side in _SIDES:
        answer = _ask(side, text, args)
        if answer is not None:
          found[side].append(answer)
    for side, answers in found.items():
      if not answers:
        continue
      row = dict(
        model=text.partition(':')[0],
        batch_size=int(text.partition(':')[2]),
        side=side,
        images_per_second=statistics.median(
          x['images_per_second'] for x in answers
        ),
      )
      peak = next((x['peak'] for x in found['vit_jax'] if x['peak']), None)
      if peak:
        flops = found['vit_jax'][0]['flops_per_image']
        row['mfu'] = row['images_per_second'] * flops / peak
      report.append(row)
      mfu = f'{row["mfu"]:.1%}' if 'mfu' in row else '-'
      print(
        f'| {row["model"]} | {row["batch_size"]} | {side} | '
        f'{row["images_per_second"]:,.0f} | {mfu} |',
        flush=True,
      )
  print(json.dumps(report))


def _ask(side: str, variant: str, args) -> dict | None:
  """Runs one turn in a process of its own; None where it fails."""
  command = [
    sys.executable,
    __file__,
    f'--side={side}',
    f'--variants={variant}',
    f'--steps={args.steps}',
    *(['--eager'] if args.eager else []),
  ]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    lines = [x for x in done.stderr.splitlines() if 'Error: ' in x]
    reason = (lines or ['no message'])[-1]
    print(f'{side} {variant} failed: {reason}', file=sys.stderr)
    return None
  return json.loads(done.stdout.splitlines()[-1])


def _work(args) -> None:
  variant, _, batch_size = args.variants.partition(':')
  if args.side == 'timm':
    answer = _timm(variant, int(batch_size), args)
  else:
    attention = 'cudnn' if 'cudnn' in args.side else 'einsum'
    answer = _ours(variant, int(batch_size), attention, args.steps)
  print(json.dumps(answer))


def _ours(variant: str, batch_size: int, attention: str, steps: int) -> dict:
  import jax

  from vit_jax.data import pipeline
  from vit_jax.parallel import mesh as mesh_lib
  from vit_jax.reporting import flops
  from vit_jax.training import train

  config = dict(
    model=dict(
      name='vit',
      variant=variant,
      num_classes=1000,
      dtype='bfloat16',
      attention=attention,
    ),
    objective=dict(name='supervised'),
    input=dict(
      data=dict(
        name='synthetic',
        split='train',
        num_examples=batch_size,
        image_size=224,
        num_classes=1000,
      ),
      ops='',
      device_ops='normalize(-1, 1)',
      batch_size=batch_size,
    ),
    optimizer=dict(name='adamw', learning_rate=1e-4, weight_decay=0.05),
    total_steps=1000,
  )
  run = train.build(config)
  batch = pipeline.to_global(
    next(run.input.batches()), mesh_lib.batch_sharding(run.mesh)
  )
  state = run.init()

  def step():
    nonlocal state
    state, metrics = run.step(state, batch)
    return metrics['loss']

  device = run.mesh.devices.flat[0]
  peak = flops.peak_flops(device)
  return dict(
    images_per_second=batch_size / _seconds(step, jax.block_until_ready, steps),
    flops_per_image=run.flops_per_step() / batch_size,
    peak=peak and peak * run.mesh.size,
  )


def _timm(variant: str, batch_size: int, args) -> dict:
  import fix_torchvision

  fix_torchvision.fix()
  import timm
  import torch

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  name, _, patch = variant.partition('/')
  torch.set_float32_matmul_precision('high')
  model = timm.create_model(f'vit_{_NAMES[name]}_patch{patch}_224').to(device)
  model.train()
  compiled = model if args.eager else torch.compile(model)
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-4, weight_decay=0.05, fused=True
  )
  images = torch.randint(0, 256, (batch_size, 3, 224, 224), dtype=torch.uint8)
  images = images.to(device)
  labels = torch.randint(0, 1000, (batch_size,)).to(device)

  def step():
    x = images.float() / 127.5 - 1
    with torch.autocast(device, dtype=torch.bfloat16):
      loss = torch.nn.functional.cross_entropy(compiled(x), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss

  seconds = _seconds(step, lambda loss: loss.item(), args.steps)
  return dict(images_per_second=batch_size / seconds)


def _seconds(step, wait, steps: int) -> float:
  """Returns the time of a step; the first few compile and warm up."""
  for _ in range(3):
    wait(step())
  begin = time.monotonic()
  for _ in range(steps):
    last = step()
  wait(last)
  return (time.monotonic() - begin) / steps


if __name__ == '__main__':
  main()
