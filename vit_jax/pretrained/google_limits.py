"""Models that Google's code cannot run, or computes differently, from an .npz.

Read in vision_transformer (`models_vit.py`) and big_vision (`models/vit.py`):
neither file format says what a model computes, so that their code computes what
it always does.
"""

from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained.google_names import POSITIONS, Dialect

# What both code bases compute: flax's defaults.
COMPUTED = {'activation': 'gelu_tanh', 'norm_epsilon': 1e-6}


def check_writable(
  model: vit.ViT, dialect: Dialect, *, allow_note_only: bool = False
) -> None:
  """Raises UserError for a model that the dialect's code base has not.

  Args:
    model: to be written.
    dialect: of the file.
    allow_note_only: whether the activation and epsilon may be others than
      Google's, which only the note for `google_npz.read` says.
  """
  problems = []
  if model.stem is not None:
    problems.append("stem='conv': Google's ViT has no convolutional stem")
  if model.pooling == 'map' and dialect.position == POSITIONS[0]:
    problems.append(
      "pooling='map', which vision_transformer does not have and would ignore"
      " without an error (big_vision has it: format='big_vision_npz')"
    )
  if not model.qkv_bias:
    problems.append('qkv_bias=False, where Google always has biases')
  noted = [
    f'{key}={getattr(model, key)!r}, where Google computes {value!r}'
    for key, value in COMPUTED.items()
    if getattr(model, key) != value
  ]
  if problems:
    raise UserError(
      f"Google's .npz cannot express {'; '.join(problems + noted)}. Write"
      ' another format, such as .safetensors'
    )
  if noted and not allow_note_only:
    raise UserError(
      f"Google's .npz cannot express {'; '.join(noted)}: their code would give"
      ' other outputs without an error. Write another format, such as'
      ' .safetensors, or, for readers that take the note of vit_jax, say'
      ' allow_note_only=True (--allow_note_only)'
    )
