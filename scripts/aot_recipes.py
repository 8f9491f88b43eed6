"""Memory and estimated time of the large recipes on pods: a Markdown table.

python scripts/aot_recipes.py
python scripts/aot_recipes.py --only=vit_g14 --topology=v5e-256

Each row is a `python -m vit_jax aot` with the arguments in its first column. A
row takes minutes; rows are printed as they come.
"""

import argparse
import json
import subprocess
import sys

_SCAN = (
  '--config.model.scan=true',
  '--config.model.remat=dots_with_no_batch_dims_saveable',
)
# Recipe and changes to it. A state of L/16 fits every chip whole.
_RECIPES = (
  ('configs/vit_i1k.py:B/16',),
  ('configs/vit_l16_i21k.py',),
  ('configs/vit_l16_i21k.py', *_SCAN),
  ('configs/vit_h14_i21k.py',),
  ('configs/vit_g14.py:g/14',),
  ('configs/vit_g14.py:G/14,fsdp=32',),
)
_TOPOLOGIES = ('v5e-256', 'v5p-512', 'v6e-256')
_HEADER = (
  '| recipe | topology | mesh | images a chip | peak GiB | of GiB | step ms | '
  'images/s/chip | MFU | compile s |'
)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', default='', help='recipes with this in them')
  parser.add_argument('--topology', action='append', help='instead of all')
  args = parser.parse_args()
  print(_HEADER, '---'.join('|' * _HEADER.count('|')), sep='\n')
  for recipe in _RECIPES:
    for topology in args.topology or _TOPOLOGIES:
      if args.only in recipe[0]:
        print('|', ' | '.join(_compile(recipe, topology)), '|', flush=True)


def _compile(recipe, topology: str) -> list[str]:
  """Returns the cells of a row."""
  command = [sys.executable, '-m', 'vit_jax', 'aot', '--format=json']
  command += [f'--topology={topology}', f'--config={recipe[0]}', *recipe[1:]]
  done = subprocess.run(command, capture_output=True, text=True)
  name = ' '.join(recipe)
  if not done.stdout.strip():
    return [name, topology, done.stderr.strip().splitlines()[-1]]
  found = json.loads(done.stdout.splitlines()[-1])
  mesh = ' '.join(f'{k}={v}' for k, v in found['mesh'].items() if v > 1)
  gib = [found[key] or 0 for key in ('peak_memory_bytes', 'hbm_bytes')]
  cells = [name, topology, mesh, f'{found["images_per_chip"]:g}']
  cells += [f'{size / 2**30:.2f}' for size in gib]
  if found['out_of_memory']:
    cells += ['does not fit', '', '']
  elif found['step_seconds'] is None:
    cells += ['?', '?', '?']
  else:
    cells += [
      f'{found["step_seconds"] * 1e3:.1f}',
      f'{found["images_per_second_per_chip"]:,.0f}',
      f'{found["mfu"]:.1%}',
    ]
  return [*cells, f'{found["compile_seconds"]:.0f}']


if __name__ == '__main__':
  main()
