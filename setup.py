"""Package and extras. The core drags in neither TensorFlow nor torch."""

import pathlib

import setuptools

_ROOT = pathlib.Path(__file__).parent
_VERSION = next(
  line.split("'")[1]
  for line in (_ROOT / 'vit_jax/__init__.py').read_text().splitlines()
  if line.startswith('__version__')
)

# TPU's compiler, of the version that jax[tpu]==0.10.2 takes. Needs no TPU.
_AOT = ['libtpu==0.0.42.1']
# Compiles the loops of the input.
_FAST = ['numba>=0.63']
# Later datasets exclude the huggingface_hub that transformers (parity) needs.
_TEST = [
  'pytest>=8',
  'pytest-xdist>=3.6',
  'ruff>=0.9',
  'datasets>=3,<5.1',
  'tensorboardX>=2.6',
  'tifffile',
  *_AOT,
  *_FAST,
]
_PARITY = [
  'timm==1.0.31',
  'torch==2.13.0',
  'torchvision==0.28.0',
  'transformers==4.57.6',
]

setuptools.setup(
  name='vit_jax',
  version=_VERSION,
  description='Vision Transformers in JAX, from pre-training to shipping',
  long_description=(_ROOT / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  # vit_jax/configs is a link to configs/.
  packages=setuptools.find_packages(include=['vit_jax*']),
  entry_points={'console_scripts': ['vit_jax=vit_jax.__main__:main']},
  package_data={
    'vit_jax': [
      'py.typed',
      'data/imagenet_synsets.txt',
      'inference/imagenet_names.txt',
      'pretrained/published.txt',
      'pretrained/timm_catalog.txt',
    ]
  },
  python_requires='>=3.11',
  install_requires=[
    'absl-py',
    'array_record',
    'etils[epath]',
    'flax>=0.12',
    'grain>=0.2.12',
    'importlib_resources',  # tensorflow-datasets uses it undeclared.
    'jax>=0.10',
    'matplotlib',
    'ml-collections>=1.0',
    'numpy>=2.0',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.12',
    'pillow>=10',
    'rich',
    'safetensors>=0.4',
    'scikit-learn',
    'simplejpeg>=1.8',
    'tensorflow-datasets>=4.9.7',
  ],
  extras_require={
    'aot': _AOT,
    'fast': _FAST,
    'test': _TEST,
    'parity': _PARITY,
    # Experiment trackers, see config.loggers.
    'wandb': ['wandb>=0.17'],
    'mlflow': ['mlflow>=2.10'],
    # Reads what datasets.save_to_disk writes.
    'huggingface': ['datasets>=3'],
    # Reads images with many bands; imagecodecs unpacks LZW and others.
    'tiff': ['tifffile', 'imagecodecs'],
    # Reads TFDS datasets that were prepared as TFRecord.
    'tensorflow': ['tensorflow-cpu>=2.20'],
  },
)
