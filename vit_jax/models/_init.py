"""Initial values of parameters: Google's, torch's (DeiT), or those of MoCo v3.

Norms start as the identity in all schemes, and the biases that are not listed
at zero. A scheme says nothing of LayerScale (`layer_scale`), of a learned
position table (`position_init`) and of the query of map pooling, which is
Xavier uniform as in big_vision.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax

Initializer = Callable[..., jax.Array]

_xavier = nn.initializers.xavier_uniform()
_lecun = nn.initializers.lecun_normal()
_zeros = nn.initializers.zeros
# torch's `trunc_normal_(std=0.02)` cuts off at +-2, a hundred deviations.
_normal = nn.initializers.normal(0.02)
# torch's default of convolutions, `kaiming_uniform_(a=sqrt(5))`: uniform within
# +-1 / sqrt(fan in).
_torch = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
# Of the patches' matrix [P Q C, D]. The default axes would count the window in
# the fan out as well, as for a convolution whose windows overlap.
_xavier_of_patches = nn.initializers.variance_scaling(
  1.0, 'fan_avg', 'uniform', in_axis=(0, 1, 2), out_axis=3
)


def _zero_bias(fan_in: int) -> Initializer:
  del fan_in
  return _zeros


def _torch_bias(fan_in: int) -> Initializer:
  """Returns torch's default of biases, with the limit of their kernel."""

  def draw(rng, shape, dtype=float):
    limit = fan_in**-0.5
    return jax.random.uniform(rng, shape, dtype, -limit, limit)

  return draw


@dataclasses.dataclass(frozen=True)
class Scheme:
  """Initial values by the part of the model.

  Attributes:
    kernel: of attention and MLP; query, key and value are a matrix each.
    mlp_bias: of MLPs.
    representation: kernels of the layers before the last one of the head.
    head: kernel of the head, unless it starts at zero.
    zero_head: whether it does where `head_zero_init` is None.
    patch_kernel: of the linear map of patches.
    patch_bias: likewise, a function of the kernel's fan in.
    convolution: kernels of the convolutional stem, its last one included.
    convolution_bias: of its last, the others have none; as `patch_bias`.
    class_token: of the class token.
    registers: of register tokens.
  """

  kernel: Initializer
  mlp_bias: Initializer
  representation: Initializer
  head: Initializer
  zero_head: bool
  patch_kernel: Initializer
  patch_bias: Callable[[int], Initializer]
  convolution: Initializer
  convolution_bias: Callable[[int], Initializer]
  class_token: Initializer
  registers: Initializer


# The values of `ViT.weight_init`.
SCHEMES: dict[str, Scheme] = {
  # vision_transformer and big_vision.
  'google': Scheme(
    kernel=_xavier,
    mlp_bias=nn.initializers.normal(1e-6),
    representation=_lecun,
    head=_lecun,
    zero_head=True,
    patch_kernel=_lecun,
    patch_bias=_zero_bias,
    convolution=_lecun,
    convolution_bias=_zero_bias,
    class_token=_zeros,
    # Not zeros: registers that start equal would stay equal.
    registers=_normal,
  ),
  # timm 0.3.2's VisionTransformer, with which DeiT was trained, and DeiT-III's
  # models_v2.py.
  'torch': Scheme(
    kernel=_normal,
    mlp_bias=_zeros,
    representation=_normal,
    head=_normal,
    zero_head=False,
    patch_kernel=_torch,
    patch_bias=_torch_bias,
    convolution=_torch,
    convolution_bias=_torch_bias,
    class_token=_normal,
    registers=_normal,
  ),
  # MoCo v3's vits.py (https://arxiv.org/abs/2104.02057); registers as in
  # DINOv2, which has its class token.
  'moco': Scheme(
    kernel=_xavier,
    mlp_bias=_zeros,
    representation=_xavier,
    head=_xavier,
    zero_head=False,
    patch_kernel=_xavier_of_patches,
    patch_bias=_zero_bias,
    convolution=_torch,
    convolution_bias=_torch_bias,
    class_token=nn.initializers.normal(1e-6),
    registers=nn.initializers.normal(1e-6),
  ),
}

# Standard deviations of a learned position table as code bases have it, as a
# function of the width.
POSITION_STD: dict[str, Callable[[int], float]] = {
  'google': lambda width: 0.02,  # And DeiT.
  'big_vision': lambda width: width**-0.5,
}


def position_table(std: float | str, width: int) -> Initializer:
  """Returns the normal distribution of a learned position table.

  Args:
    std: the standard deviation, or a key of POSITION_STD.
    width: D.
  """
  if isinstance(std, str):
    std = POSITION_STD[std](width)
  return nn.initializers.normal(std)
