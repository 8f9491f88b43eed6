"""Convert weights between formats.

examples:
  python -m vit_jax convert runs/pets pets.safetensors
  python -m vit_jax convert augreg-B/16 folder/ --format=huggingface

Every parameter must have a place in both formats. The target is read again
after writing, and all arrays are compared bit by bit.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from vit_jax.commands import _cli
from vit_jax.errors import RunError, UserError
from vit_jax.printable import printable, show


def main(argv: Sequence[str] | None = None) -> int:
  """Converts weights and says what was done; returns the exit code."""
  return _cli.run(_main, argv)


def _main(argv: Sequence[str]) -> None:
  args = _parser().parse_args(argv)
  # Importing jax takes seconds: a mistyped command should not wait for it.
  from vit_jax.pretrained import catalog

  # `save` would say what is wrong with it, but only when all is read.
  catalog.writer(args.target, args.format)
  options = _cli.weights_options(args)
  weights = catalog.load(args.source, **options)
  show(f'read     {args.source}: {_kind(weights)}')
  _show_facts(weights)
  catalog.save(
    weights,
    args.target,
    format=args.format,
    allow_note_only=args.allow_note_only,
  )
  try:
    # The file just written is no more trusted than any other.
    model = None
    if 'model' in weights.trusted:
      names = {'name', *(args.model or {})} & weights.model.keys()
      model = {key: weights.model[key] for key in names}
    own = args.format if catalog.is_own(args.format) else None
    found = catalog.load(
      args.target, format=own, model=model, on_log=options['on_log']
    )
  except UserError as e:
    raise RunError(
      f'{args.target} was written but cannot be read again: {e}'
    ) from e
  suffix = pathlib.Path(args.target).suffix
  show(f'written  {args.target}: {args.format or suffix}')
  print(f'checked  {_compare(weights, found)}')
  for line in _unsaid(weights, found):
    show(f'note     {printable(line)}')


def _parser() -> argparse.ArgumentParser:
  parser = _cli.parser(
    'convert', __doc__, failure='the file written differs from the weights read'
  )
  parser.add_argument(
    'source',
    metavar='SOURCE',
    help='a run, a file, a folder of timm or Hugging Face, or a published name',
  )
  parser.add_argument(
    'target', metavar='TARGET', help='a file; a folder for timm and huggingface'
  )
  parser.add_argument(
    '--format',
    help='vit_jax, google_npz, big_vision_npz, timm, huggingface or a module '
    "of your own (default: vit_jax for .safetensors, Google's for .npz)",
  )
  parser.add_argument(
    '--allow_note_only',
    action='store_true',
    help="write Google's .npz although their code computes another activation"
    ' or epsilon; only vit_jax reads the note that says so',
  )
  _cli.add_weights_options(parser)
  return parser


def _kind(weights: Any) -> str:
  """Returns the format, the dialect of it, and for a run the step."""
  source, dialect = weights.source, weights.source.get('dialect')
  parts = [source.get('format', 'vit_jax')]
  if isinstance(dialect, str) and dialect not in parts:
    parts.append(dialect)
  if 'step' in source:
    average = ', averaged weights' if source.get('ema') else ''
    parts.append(f'step {source["step"]:,}{average}')
  return ' '.join(parts)


def _show_facts(weights: Any) -> None:
  import numpy as np

  def say(name: str, fact: str) -> None:
    show(f'{name:8} {printable(fact)}')

  arrays = [np.asarray(array) for array in weights.params.values()]
  dtypes = sorted({str(array.dtype) for array in arrays})
  ops, device_ops = (
    weights.preprocess.get(key, 'unknown') or 'nothing'
    for key in ('ops', 'device_ops')
  )
  say('model', ', '.join(f'{k}={v}' for k, v in weights.model.items()))
  say(
    'params',
    f'{sum(a.size for a in arrays):,} in {len(arrays)} arrays,'
    f' {", ".join(dtypes)}, {sum(a.nbytes for a in arrays) / 1e6:,.1f} MB',
  )
  say('images', f'on the host {ops}; on the device {device_ops}')
  if names := weights.class_names:
    say('classes', f'{len(names):,}: {_first(names, 3)}')
  if unused := weights.source.get('unused'):
    say('left', f'{len(unused)} arrays of no encoder: {_first(unused, 5)}')


def _first(names: Sequence[str], most: int) -> str:
  return ', '.join(names[:most]) + (', ...' if len(names) > most else '')


def _compare(before: Any, after: Any) -> str:
  """Returns that all arrays came back; raises RunError where they did not."""
  import numpy as np

  old, new = before.params, after.params
  problems = [f'missing: {name}' for name in old.keys() - new.keys()]
  for name in old.keys() & new.keys():
    ours, theirs = np.asarray(old[name]), np.asarray(new[name])
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
      problems.append(
        f'{name}: was {ours.dtype}{list(ours.shape)}, is'
        f' {theirs.dtype}{list(theirs.shape)}'
      )
    elif ours.tobytes() != theirs.tobytes():
      error = np.max(np.abs(ours.astype(float) - theirs.astype(float)))
      problems.append(f'{name}: differs by up to {error:.3g}')
  if problems:
    raise RunError(
      'what was written is not what was read:\n  '
      + '\n  '.join(sorted(problems))
    )
  added = ', '.join(sorted(new.keys() - old.keys()))
  more = f'; added: {added}' if added else ''
  return f'read again, {len(old)} arrays have the same bits{more}'


def _unsaid(before: Any, after: Any) -> list[str]:
  """Returns what a reader of the target will not find in it."""
  from vit_jax import lookup
  from vit_jax.inference import classes
  from vit_jax.pretrained import model_section
  from vit_jax.pretrained.weights import build_model

  modules = [build_model(w) for w in (before, after)]
  trusted = 'model' in before.trusted
  kinds = ('computes', 'structure')
  lines = []
  for field in lookup.model_fields(before.model, *kinds, trusted=trusted):
    old, new = (getattr(module, field, None) for module in modules)
    # With other parameters the field does not say how to read these.
    if old == new or model_section.problems(
      after.params, after.model | {field: old}
    ):
      continue
    lines.append(
      f'the target reads as {field}={new!r}: load it with'
      f' model={ {field: old}!r}'
    )
  for key in ('ops', 'device_ops'):
    old, new = (w.preprocess.get(key) for w in (before, after))
    if old is not None and old != new:
      lines.append(f'the target reads as {key}={new!r}: it was {old!r}')
  if before.class_names is not None and after.class_names is None:
    lines.append('the target does not hold the names of the classes')
  old, new = (classes.loss_of(w, None) for w in (before, after))
  if old != new:
    lines.append(
      f'the target does not contain the loss: load it with loss={old!r}'
    )
  return lines
