"""Training and inference speed of a ViT beside transformers' in eager torch.

  python scripts/compare_torch.py --variant=S/16 --batch_size=16

Each side is a process of its own, started as its users would start it; the two
take turns within one run, so that both meet the same machine. A training step
is forward, backward and a momentum SGD update in float32 on random images.
Needs the extra [parity]. Prints the processor, a table and, last, one JSON
object. The ratio is that of the machine it ran on: others differ.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time

import machine

_SIDES = ('vit_jax', 'torch')
_TASKS = ('train', 'predict')


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--variant', default='S/16')
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--steps', type=int, default=2, help='in a round')
  parser.add_argument('--threads', type=int, help='of torch; default: cores')
  parser.add_argument('--side', choices=_SIDES, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    _work(args)
  else:
    _compare(args)


def _compare(args) -> None:
  if not all(map(importlib.util.find_spec, ('torch', 'transformers'))):
    sys.exit("torch or transformers is missing: pip install -e '.[parity]'")
  workers = {
    side: subprocess.Popen(
      [sys.executable, *sys.argv, f'--side={side}'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for side in _SIDES
  }
  try:
    seconds = _take_turns(workers, args.rounds)
  finally:
    for worker in workers.values():
      worker.kill()
      worker.communicate()

  report = {
    'machine': machine.describe(),
    'variant': args.variant,
    'batch_size': args.batch_size,
  }
  print(report['machine'])
  print(f'{"":10}{"vit_jax":>14}{"torch":>14}{"ratio":>8}   images/s, medians')
  for task in _TASKS:
    speed = {
      side: args.batch_size / statistics.median(seconds[task, side])
      for side in _SIDES
    }
    spread = {
      side: f'{min(seconds[task, side]):.2f}-{max(seconds[task, side]):.2f} s'
      for side in _SIDES
    }
    ratio = speed['vit_jax'] / speed['torch']
    print(
      f'{task:10}{speed["vit_jax"]:14.2f}{speed["torch"]:14.2f}{ratio:8.2f}'
      f'   a step takes {spread["vit_jax"]} and {spread["torch"]}'
    )
    report[task] = {**speed, 'ratio': ratio}
  print(json.dumps(report))


def _take_turns(workers, rounds: int) -> dict[tuple[str, str], list[float]]:
  """Returns the seconds of a step in each round, for each task and side."""
  seconds = {(task, side): [] for task in _TASKS for side in _SIDES}
  for task in _TASKS:
    for number in range(rounds + 1):
      for side, worker in workers.items():
        try:
          worker.stdin.write(f'{task}\n')
          worker.stdin.flush()
          answer = worker.stdout.readline()
        except BrokenPipeError:
          answer = ''
        if not answer:
          sys.exit(f'the side {side} failed; its error is above')
        if number:  # The first round compiles and warms up.
          seconds[task, side].append(float(answer))
  return seconds


def _work(args) -> None:
  """Answers each task on stdin with the seconds of a step."""
  make = _vit_jax_steps if args.side == 'vit_jax' else _torch_steps
  steps = make(args)
  for line in sys.stdin:
    step = steps[line.strip()]
    begin = time.perf_counter()
    for _ in range(args.steps):
      step()
    print((time.perf_counter() - begin) / args.steps, flush=True)


def _vit_jax_steps(args):
  from vit_jax.parallel import host_memory, platforms

  platforms.skip_absent_tpu()
  host_memory.keep_freed_memory()
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from vit_jax import losses
  from vit_jax.models import vit

  model = vit.Model(args.variant, 1000, activation='gelu')
  rng = np.random.default_rng(0)
  shape = (args.batch_size, args.image_size, args.image_size, 3)
  image = jnp.asarray(rng.normal(size=shape), jnp.float32)
  label = jnp.asarray(rng.integers(0, 1000, args.batch_size), jnp.int32)
  tx = optax.sgd(1e-3, momentum=0.9)

  @jax.jit
  def init():
    params = model.init(jax.random.key(0), image[:1])['params']
    return params, tx.init(params)

  def loss_fn(params):
    logits = model.apply({'params': params}, image, train=True)['logits']
    targets = losses.one_hot(label, 1000)
    return losses.softmax_cross_entropy(logits, targets).mean()

  def train_step(state):
    params, opt_state = state
    grads = jax.grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state

  train_step = jax.jit(train_step, donate_argnums=0)
  predict = jax.jit(lambda p: model.apply({'params': p}, image)['logits'])
  state = init()

  def train():
    nonlocal state
    state = jax.block_until_ready(train_step(state))

  return {
    'train': train,
    'predict': lambda: jax.block_until_ready(predict(state[0])),
  }


def _torch_steps(args):
  import os

  import fix_torchvision

  fix_torchvision.fix()
  import torch
  import transformers

  from vit_jax.models import vit

  torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
  name, _, patch = args.variant.partition('/')
  size = vit.VARIANTS[name]
  config = transformers.ViTConfig(
    hidden_size=size['width'],
    num_hidden_layers=size['depth'],
    num_attention_heads=size['num_heads'],
    intermediate_size=size['mlp_dim'],
    image_size=args.image_size,
    patch_size=int(patch),
    num_labels=1000,
    layer_norm_eps=1e-6,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    attn_implementation='sdpa',
  )
  model = transformers.ViTForImageClassification(config)
  image = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
  label = torch.randint(0, 1000, (args.batch_size,))
  optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

  def train():
    model.train()
    optimizer.zero_grad(set_to_none=True)
    logits = model(image).logits
    torch.nn.functional.cross_entropy(logits, label).backward()
    optimizer.step()

  def predict():
    model.eval()
    with torch.inference_mode():
      model(image)

  return {'train': train, 'predict': predict}


if __name__ == '__main__':
  main()
