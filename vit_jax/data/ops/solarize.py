"""solarize: the bright values inverted."""

from vit_jax.data.ops import _pillow
from vit_jax.data.ops_language import Op
from vit_jax.errors import UserError


def solarize(rate: float = 1.0, *, threshold: int = 128) -> Op:
  """Inverts the values from `threshold` on, with probability `rate`.

  Args:
    rate: a probability.
    threshold: 0 inverts everything, 256 nothing.
  """
  if not isinstance(threshold, int) or not 0 <= threshold <= 256:
    raise UserError(f'threshold is an integer of 0 .. 256; got {threshold!r}')
  return _pillow.as_op(
    lambda image, rng: _pillow.solarize(image, threshold), rate
  )
