"""vit_jax: Vision Transformers in JAX, from pre-training to shipping."""

__version__ = '0.1.0'
