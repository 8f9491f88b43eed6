"""Run the notebooks of colabs/ and store their outputs in them.

  pip install nbclient ipykernel
  python scripts/run_notebooks.py --folder=/content

Each runs in a new folder below `--folder`, so that the stored outputs show
paths as in Colab. Metadata of the local kernel are left out.
"""

import argparse
import pathlib
import sys

import nbclient
import nbformat

COLABS = pathlib.Path(__file__).parents[1] / 'colabs'
_PARAMETERS = '\nWORKDIR = "runs"'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--folder', type=pathlib.Path, default='/content')
  parser.add_argument('--timeout_seconds', type=int, default=1800)
  args = parser.parse_args()
  for path in sorted(COLABS.glob('*.ipynb')):
    folder = args.folder / path.stem
    folder.mkdir(parents=True)
    print(f'{path.name} in {folder}', file=sys.stderr)
    _run(path, folder, args.timeout_seconds)


def _run(path: pathlib.Path, folder: pathlib.Path, timeout: int) -> None:
  notebook = nbformat.read(path, as_version=4)
  metadata = dict(notebook.metadata)
  sources = [cell.source for cell in notebook.cells]
  for cell in notebook.cells:
    if 'parameters' in cell.metadata.get('tags', ()):
      cell.source += _PARAMETERS
  nbclient.NotebookClient(
    notebook,
    timeout=timeout,
    coalesce_streams=True,
    resources={'metadata': {'path': str(folder)}},
  ).execute()
  for cell, source in zip(notebook.cells, sources, strict=True):
    cell.source = source
    cell.metadata.pop('execution', None)
    if cell.cell_type == 'code':
      cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']
  notebook.metadata = metadata
  nbformat.write(notebook, path)


if __name__ == '__main__':
  main()
