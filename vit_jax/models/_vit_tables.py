"""The sizes of ViTs by name, and the meaning of every field of a ViT.

This file imports nothing, so that recipes can import it.
"""

# As in big_vision, which has them from: Ti, S (DeiT), B, L, H (ViT), g, G
# (Scaling ViT, https://arxiv.org/abs/2106.04560), So400m (SoViT,
# https://arxiv.org/abs/2305.13035), e (PaLI, https://arxiv.org/abs/2209.06794).
VARIANTS: dict[str, dict[str, int]] = {
  name: dict(width=width, depth=depth, mlp_dim=mlp_dim, num_heads=num_heads)
  for name, width, depth, mlp_dim, num_heads in (
    ('mu', 32, 1, 128, 2),
    ('Ti', 192, 12, 768, 3),
    ('S', 384, 12, 1536, 6),
    ('M', 512, 12, 2048, 8),
    ('B', 768, 12, 3072, 12),
    ('L', 1024, 24, 4096, 16),
    ('So400m', 1152, 27, 4304, 16),
    ('H', 1280, 32, 5120, 16),
    ('g', 1408, 40, 6144, 16),
    ('g-opt', 1536, 40, 6144, 16),
    ('G', 1664, 48, 8192, 16),
    ('G-opt', 1536, 48, 8192, 16),
    ('e', 1792, 56, 15360, 16),
  )
}

# For code that compares models of any kind: `lookup.model_fields` returns the
# fields of a kind, as the module of a model exports them in FIELDS.
FIELDS: dict[str, tuple[str, ...]] = {
  # The shapes of parameters; a variant is a name for these.
  'size': ('patch_size', 'width', 'depth', 'mlp_dim', 'num_heads'),
  # The outputs of the same parameters.
  'computes': (
    'activation',
    'norm_epsilon',
    'num_heads',
    'position',
    'final_norm',
  ),
  # Of these, what neither names nor shapes of parameters show.
  'unseen': ('activation', 'norm_epsilon'),
  # Which parameters exist.
  'structure': (
    'stem',
    'pooling',
    'num_registers',
    'qk_norm',
    'qkv_bias',
    'position_resize',
  ),
  # The end of the model, which a new task replaces.
  'head': (
    'num_classes',
    'representation_size',
    'head_hidden_dim',
    'head_bias_init',
    'head_zero_init',
  ),
  # Initial values of what training changes.
  'initial': ('layer_scale', 'weight_init', 'position_init'),
  # Training alone; no effect on evaluation.
  'training': (
    'dropout_rate',
    'attention_dropout_rate',
    'head_dropout_rate',
    'stochastic_depth_rate',
    'stochastic_depth_schedule',
  ),
  # The floating-point format of the computation.
  'precision': ('dtype', 'residual_dtype'),
  # Time and memory of a step; a run may continue with other values.
  'cost': ('attention', 'remat'),
  # How parameters are stored; the same numbers.
  'layout': ('scan',),
}
