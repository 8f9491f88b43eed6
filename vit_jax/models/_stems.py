"""Stems: modules that turn images into a grid of tokens, one per patch.

A stem maps `[B, height, width, C]` to `[B, rows, columns, D]`. `ViT(stem=...)`
takes any such module. The ones here have names for configs; a config can also
name a module of the user's own that exports `Stem`. Of a stem's fields, those
that `ViT` has too get the values of the model.

Shapes: B batch, H W height and width, C channels, P Q patch, D width.
"""

from typing import Any

import flax.linen as nn

from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.models import _init
from vit_jax.models._activations import ACTIVATIONS
from vit_jax.models._norm import layer_norm, materialize_gradient


class PatchEmbedding(nn.Module):
  """Cuts images into patches and maps each to a token.

  A convolution whose stride is its window, written as one matrix product. The
  kernel has the shape of the convolution's, `[height, width, C, D]`.

  Attributes:
    patch_size: (height, width), which divide the image's.
    width: D.
    weight_init: a key of `_init.SCHEMES`.
    dtype: of the computation.
  """

  patch_size: tuple[int, int]
  width: int
  weight_init: str = 'google'
  dtype: Any = 'float32'

  @nn.compact
  def __call__(self, image_BHWC):
    """Returns a grid of tokens, `[B, rows, columns, D]`."""
    B, H, W, C = image_BHWC.shape
    P, Q = self.patch_size
    scheme = _init.SCHEMES[self.weight_init]
    kernel = self.param('kernel', scheme.patch_kernel, (P, Q, C, self.width))
    bias = self.param('bias', scheme.patch_bias(P * Q * C), (self.width,))
    patches = image_BHWC.astype(self.dtype).reshape(B, H // P, P, W // Q, Q, C)
    patches = patches.swapaxes(2, 3).reshape(B, H // P, W // Q, P * Q * C)
    kernel = kernel.astype(self.dtype).reshape(P * Q * C, self.width)
    return patches @ kernel + bias.astype(self.dtype)[None, None, None]


class ConvStem(nn.Module):
  """Maps images to tokens by 3x3 convolutions of stride 2, then a dense layer.

  The convolutional stem of "Early Convolutions Help Transformers See Better"
  (https://arxiv.org/abs/2106.14881): the channels double up to D, and each
  convolution is followed by a norm and an activation. The paper's norm is
  BatchNorm and its activation ReLU; here they are those of the blocks, so that
  the model has no state. The paper leaves out one block in exchange.

  Attributes:
    patch_size: (height, width), a square of a power of two, from 2.
    width: D, a multiple of half the patch's side.
    activation: a key of `ACTIVATIONS`.
    norm_epsilon: of every LayerNorm.
    weight_init: a key of `_init.SCHEMES`.
    dtype: of the computation.
  """

  patch_size: tuple[int, int]
  width: int
  activation: str = 'gelu_tanh'
  norm_epsilon: float = 1e-6
  weight_init: str = 'google'
  dtype: Any = 'float32'

  def __post_init__(self):
    rows, columns = self.patch_size
    if rows != columns or rows < 2 or rows.bit_count() > 1:
      raise UserError(
        f'patch_size={self.patch_size}: the convolutional stem halves the image'
        ' again and again. Use a square patch whose side is 2, 4, 8, 16, ...'
      )
    if self.width % (rows // 2):
      raise UserError(
        f'width={self.width}: the convolutional stem with a patch of {rows}'
        f' starts with width / {rows // 2} channels. Use a multiple of'
        f' {rows // 2}'
      )
    super().__post_init__()

  @nn.compact
  def __call__(self, x_BHWC):
    """Returns a grid of tokens, `[B, rows, columns, D]`."""
    scheme = _init.SCHEMES[self.weight_init]
    num_convolutions = self.patch_size[0].bit_length() - 1
    for i in range(num_convolutions):
      x_BHWC = nn.Conv(
        self.width >> (num_convolutions - 1 - i),
        kernel_size=(3, 3),
        strides=2,
        padding=1,
        use_bias=False,  # The norm has one.
        kernel_init=scheme.convolution,
        dtype=self.dtype,
        name=f'convolution_{i}',
      )(x_BHWC)
      norm = layer_norm(self.norm_epsilon, self.dtype, f'norm_{i}')
      x_BHWC = ACTIVATIONS[self.activation](norm(materialize_gradient(x_BHWC)))
    return nn.Dense(
      self.width,
      kernel_init=scheme.convolution,
      bias_init=scheme.convolution_bias(x_BHWC.shape[-1]),
      dtype=self.dtype,
      name='out',
    )(x_BHWC)


STEMS: dict[str, type[nn.Module]] = {'patch': PatchEmbedding, 'conv': ConvStem}


def find(name: str, *, trusted: bool = False) -> type[nn.Module]:
  """Returns the class of a stem.

  Args:
    name: a key of STEMS or, if trusted, a dotted name of the user's own module,
      which exports `Stem`.
    trusted: whether the name comes from the user, not from a file.

  Raises:
    UserError: an unknown name, or a dotted one that is not trusted.
  """
  if name in STEMS:
    return STEMS[name]
  if '.' in name:
    return lookup.find('models', name, 'Stem', trusted=trusted)
  listed = ', '.join(map(repr, STEMS))
  raise UserError(
    f'stem={name!r}: expected one of {listed}, or the dotted name of a module'
    ' that exports Stem'
  )
