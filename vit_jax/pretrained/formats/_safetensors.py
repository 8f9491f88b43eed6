"""Arrays and metadata of a .safetensors file, as numpy reads them."""

import os

import numpy as np
import safetensors
import safetensors.numpy

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.printable import printable

# Types that numpy has, and bfloat16 of ml_dtypes. Files have others, such as
# F8_E4M3 and F4, which are scaled in ways that no header says.
_DTYPES = frozenset(
  'BOOL U8 I8 U16 I16 U32 I32 U64 I64 F16 BF16 F32 F64'.split()
)


def read(
  path: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns arrays by name, and the metadata.

  Raises:
    UserError: no such file, a broken one, or types that numpy does not have.
  """
  path = os.path.expanduser(path)
  entries, metadata = files.read_safetensors_header(path)
  problems = []
  for name, (dtype, shape) in entries.items():
    label = f'{printable(name, max_length=80)} {tuple(shape)}'
    if dtype not in _DTYPES:
      problems.append(f'{label} is {dtype}')
    elif 0 in shape:
      problems.append(f'{label} is empty')
  if problems:
    more = f'; and {len(problems) - 3} more' if len(problems) > 3 else ''
    raise UserError(
      f'cannot use the arrays in {printable(path)}:'
      f' {"; ".join(problems[:3])}{more}. Write the file again with float32,'
      ' bfloat16 or float16'
    )
  try:
    return safetensors.numpy.load_file(path), metadata
  except (OSError, MemoryError, safetensors.SafetensorError) as e:
    raise files.unreadable(path, e) from e
