"""gaussian_blur: blur by a random radius."""

from vit_jax.data.ops import _pillow
from vit_jax.data.ops._checks import range_of
from vit_jax.data.ops_language import Op


def gaussian_blur(
  rate: float = 1.0, *, radius: tuple[float, float] = (0.1, 2.0)
) -> Op:
  """Blurs with probability `rate`, as DINO and DeiT III do by Pillow.

  Args:
    rate: a probability.
    radius: smallest and largest radius (a standard deviation) in pixels, drawn
      uniformly between.
  """
  low, high = range_of('radius', radius)
  return _pillow.as_op(
    lambda image, rng: _pillow.blur(image, rng.uniform(low, high)), rate
  )
