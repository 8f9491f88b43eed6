"""Published weights by short names: addresses, models, preprocessing.

Addresses are those in the projects' own lists (their README files, timm); none
was tried here. Mirrors are listed only where they hold the same weights.
Checksums are what was published: nothing for Google's files and the hub, the
start of a SHA-256 in DeiT's file names, the start of an MD5 in MAE's README.

The MAE weights are licensed CC-BY-NC 4.0, not for commercial use.
"""

import dataclasses
import re
from typing import Any

from vit_jax.pretrained import presets
from vit_jax.pretrained.download import Remote

_GOOGLE = 'https://storage.googleapis.com'
_META = 'https://dl.fbaipublicfiles.com'
_I21K = 21843
_TANH = {'activation': 'gelu_tanh', 'norm_epsilon': 1e-6}
_EXACT = {'activation': 'gelu', 'norm_epsilon': 1e-6}


# Where AugReg's 52,268 checkpoints are (https://arxiv.org/abs/2106.10270), each
# named after its recipe, with that of the fine-tuning after `--`.
AUGREG = 'gs://vit_models/augreg/'
_FLOAT = r'\d+(?:\.\d+)?(?:e-?\d+)?'
_AUGREG_NAME = re.compile(
  rf'[A-Za-z0-9_]+-[a-z0-9_]+-\d+ep-lr_{_FLOAT}-aug_[a-z]+\d?-wd_{_FLOAT}'
  rf'-do_{_FLOAT}-sd_{_FLOAT}'
  rf'(--[a-z0-9_]+-steps_\d+k-lr_{_FLOAT}-res_\d+)?(\.npz)?'
)


@dataclasses.dataclass(frozen=True)
class Published:
  """Weights that someone published.

  Attributes:
    remotes: where they are; the same weights each, the preferred first.
    model: the model section; the file is checked to be of it.
    preprocess: as in `weights.Weights`, where the file does not tell.
    resize: of `models._position.RESIZE`.
  """

  remotes: tuple[Remote, ...]
  model: dict[str, Any]
  preprocess: dict[str, Any]
  resize: str


def is_augreg_name(name: str) -> bool:
  """Whether a name, with or without .npz, is that of an AugReg checkpoint."""
  return _AUGREG_NAME.fullmatch(name) is not None


def _mirror(name: str) -> tuple[Remote, ...]:
  return (Remote(f'hf://timm/{name}/model.safetensors'),) if name else ()


def _model(variant, num_classes, computed, **more) -> dict[str, Any]:
  section = dict(name='vit', variant=variant, num_classes=num_classes)
  return section | dict(pooling='token') | more | computed


def _google(path, variant, num_classes, size, mirror='') -> Published:
  # Files of other folders share their names: they keep the folder.
  name = None if path.startswith('augreg/') else f'{path}.npz'
  remote = Remote(f'{_GOOGLE}/vit_models/{path}.npz', name=name)
  return Published(
    remotes=(remote, *_mirror(mirror)),
    model=_model(variant, num_classes, _TANH),
    preprocess=presets.preprocess('vision_transformer', size),
    resize='google',
  )


def _augreg() -> dict[str, Published]:
  """The models that the README of vision_transformer recommends."""
  out = {}
  for variant, recipe, rate, mirror in (
    ('Ti/16', 'aug_none-wd_0.03', 0.03, 'vit_tiny_patch16'),
    ('S/32', 'aug_none-wd_0.1', 0.01, ''),
    ('S/16', 'aug_light1-wd_0.03', 0.03, 'vit_small_patch16'),
    ('B/32', 'aug_light1-wd_0.1', 0.01, ''),
    ('B/16', 'aug_medium1-wd_0.1', 0.03, 'vit_base_patch16'),
    ('L/16', 'aug_strong1-wd_0.1', 0.01, ''),
  ):
    model = variant.replace('/', '_')
    path = f'augreg/{model}-i21k-300ep-lr_0.001-{recipe}-do_0.0-sd_0.0'
    out[f'augreg-{variant}'] = _google(
      path, variant, _I21K, 224, mirror and f'{mirror}_224.augreg_in21k'
    )
    tuned = f'{path}--imagenet2012-steps_20k-lr_{rate}-res_384'
    # timm tuned its B/16 with another rate.
    same = mirror and variant != 'B/16'
    out[f'augreg-{variant}-i1k-384'] = _google(
      tuned,
      variant,
      1000,
      384,
      f'{mirror}_384.augreg_in21k_ft_in1k' if same else '',
    )
  return out


def _originals() -> dict[str, Published]:
  """ "An Image is Worth 16x16 Words", and the models trained with SAM."""
  out = {}
  for variant in ('B/32', 'B/16', 'L/32', 'L/16', 'H/14'):
    file = f'ViT-{variant.replace("/", "_")}'
    width = {'B': 768, 'L': 1024, 'H': 1280}[variant[0]]
    entry = _google(f'imagenet21k/{file}', variant, _I21K, 224)
    entry.model['representation_size'] = width
    out[f'vit-{variant}'] = entry
    if variant != 'H/14':
      out[f'vit-{variant}-i1k-384'] = _google(
        f'imagenet21k+imagenet2012/{file}', variant, 1000, 384
      )
  for variant in ('B/32', 'B/16'):
    patch = variant.removeprefix('B/')
    out[f'sam-{variant}'] = _google(
      f'sam/ViT-B_{patch}',
      variant,
      1000,
      224,
      f'vit_base_patch{patch}_224.sam_in1k',
    )
  return out


def _big_vision() -> dict[str, Published]:
  """The S/16 baseline (https://arxiv.org/abs/2205.01580) and SigLIP."""
  out = {}
  for epochs in (90, 150, 300):
    out[f'bv-S/16-i1k-{epochs}ep'] = Published(
      remotes=(Remote(f'{_GOOGLE}/big_vision/vit_s16_i1k_{epochs}ep.npz'),),
      model=_model('S/16', 1000, _TANH, pooling='mean', position='sincos2d'),
      preprocess={},  # The reader's for big_vision.
      resize='google',
    )
  for variant, size, number in (
    ('B/16', 224, 63724782),
    ('B/16', 256, 60500360),
    ('B/16', 384, 68578854),
    ('B/16', 512, 68580893),
    ('L/16', 256, 60552751),
    ('L/16', 384, 63634585),
    ('So400m/14', 224, 57633886),
    ('So400m/14', 384, 58765454),
  ):
    letters, _, patch = variant.lower().partition('/')
    short = letters if letters == 'so400m' else f'{letters}{patch}'
    file = f'siglip/webli_en_{short}_{size}_{number}.npz'
    out[f'siglip-{variant}-{size}'] = _siglip(file, variant, size)
  for variant, sizes in (
    ('B/32', (256,)),
    ('B/16', (224, 256, 384, 512)),
    ('L/16', (256, 384, 512)),
    ('So400m/14', (224, 384)),
  ):
    for size in sizes:
      file = f'siglip2/siglip2_{variant.lower().replace("/", "")}_{size}.npz'
      out[f'siglip2-{variant}-{size}'] = _siglip(file, variant, size)
  return out


def _siglip(file: str, variant: str, size: int) -> Published:
  return Published(
    remotes=(Remote(f'{_GOOGLE}/big_vision/{file}'),),
    model=_model(variant, None, _TANH, pooling='map'),
    preprocess=presets.preprocess('siglip', size),
    resize='google',
  )


def _dino() -> dict[str, Published]:
  out = {}
  for variant, file, size in (
    ('S/16', 'deitsmall16', 'small'),
    ('S/8', 'deitsmall8', 'small'),
    ('B/16', 'vitbase16', 'base'),
    ('B/8', 'vitbase8', 'base'),
  ):
    patch = variant.split('/')[1]
    file = f'dino_{file}_pretrain'
    out[f'dino-{variant}'] = Published(
      remotes=(
        *_mirror(f'vit_{size}_patch{patch}_224.dino'),
        Remote(f'{_META}/dino/{file}/{file}.pth'),
      ),
      model=_model(variant, None, _EXACT),
      preprocess=presets.preprocess('dino', 224),
      resize='dino',
    )
  for variant, size in (('S/14', 'small'), ('B/14', 'base'), ('L/14', 'large')):
    letter = variant[0].lower()
    for registers, ours, theirs, hub in (
      (0, 'dinov2', 'pretrain', f'vit_{size}_patch14_dinov2'),
      (4, 'dinov2reg', 'reg4_pretrain', f'vit_{size}_patch14_reg4_dinov2'),
    ):
      more = dict(num_registers=registers) if registers else {}
      file = f'dinov2_vit{letter}14'
      out[f'{ours}-{variant}'] = Published(
        remotes=(
          *_mirror(f'{hub}.lvd142m'),
          Remote(f'{_META}/dinov2/{file}/{file}_{theirs}.pth'),
        ),
        model=_model(variant, None, _EXACT, layer_scale=1e-5, **more),
        preprocess=presets.preprocess('dinov2', 518),
        # With registers it was antialiased and without the offset.
        resize='timm' if registers else 'dino',
      )
  return out


def _deit() -> dict[str, Published]:
  out = {}
  for variant, size, resolution, start in (
    ('Ti/16', 'tiny', 224, 'a1311bcf'),
    ('S/16', 'small', 224, 'cd65a155'),
    ('B/16', 'base', 224, 'b5f2ef4d'),
    ('B/16', 'base', 384, '8de9b5d1'),
  ):
    name = f'deit_{size}_patch16_{resolution}'
    suffix = '' if resolution == 224 else f'-{resolution}'
    out[f'deit-{variant}{suffix}'] = Published(
      remotes=(
        *_mirror(f'{name}.fb_in1k'),
        Remote(f'{_META}/deit/{name}-{start}.pth', f'sha256:{start}'),
      ),
      model=_model(variant, 1000, _EXACT),
      preprocess=presets.preprocess('deit', resolution),
      resize='torch',
    )
  for variant, size, resolutions in (
    ('S/16', 'small', (224, 384)),
    ('M/16', 'medium', (224,)),
    ('B/16', 'base', (224, 384)),
    ('L/16', 'large', (224, 384)),
  ):
    for resolution in resolutions:
      for data, theirs in (('1k', 'fb_in1k'), ('21k', 'fb_in22k_ft_in1k')):
        hub = f'deit3_{size}_patch16_{resolution}.{theirs}'
        file = f'deit/deit_3_{size}_{resolution}_{data}.pth'
        out[f'deit3-{variant}-{resolution}-{data}'] = Published(
          remotes=(*_mirror(hub), Remote(f'{_META}/{file}')),
          model=_model(variant, 1000, _EXACT, layer_scale=1e-5),
          preprocess=presets.preprocess('deit3', resolution),
          resize='torch',
        )
  return out


def _mae() -> dict[str, Published]:
  out = {}
  for variant, size, start in (
    ('B/16', 'base', '8cad7c'),
    ('L/16', 'large', 'b8b06e'),
    ('H/14', 'huge', '9bdbb0'),
  ):
    patch = variant.split('/')[1]
    out[f'mae-{variant}'] = Published(
      remotes=(
        *_mirror(f'vit_{size}_patch{patch}_224.mae'),
        Remote(
          f'{_META}/mae/pretrain/mae_pretrain_vit_{size}.pth', f'md5:{start}'
        ),
      ),
      model=_model(variant, None, _EXACT),
      preprocess=presets.preprocess('mae', 224),
      resize='torch',
    )
  return out


PUBLISHED: dict[str, Published] = {
  **_augreg(),
  **_originals(),
  **_big_vision(),
  **_dino(),
  **_deit(),
  **_mae(),
}
