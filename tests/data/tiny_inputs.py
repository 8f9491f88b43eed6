"""Inputs of 20 made-up images of 8x8 pixels in batches of 8."""

import itertools
from unittest import mock

import jax
import numpy as np

from vit_jax.data import pipeline

NUM = 20
DATA = dict(name='synthetic', split='train', num_examples=NUM, image_size=8)
OPS = 'random_crop(6)|flip_lr'


def make_train(**kwargs):
  defaults = dict(data=DATA, ops=OPS, batch_size=8, seed=0)
  return pipeline.TrainInput(**(defaults | kwargs))


def make_eval(**kwargs):
  return pipeline.EvalInput(**(dict(data=DATA, ops='', batch_size=8) | kwargs))


def make_as_process(index, count, make=make_train, **kwargs):
  """Returns an input as process `index` of `count` makes it."""
  with (
    mock.patch.object(jax, 'process_index', lambda: index),
    mock.patch.object(jax, 'process_count', lambda: count),
  ):
    return make(**kwargs)


def take(inputs, num, start_step=0):
  batches = inputs.batches(start_step)
  taken = list(itertools.islice(batches, num))
  batches.close()
  return taken


def all_rows(batches, name='index'):
  return np.concatenate([batch[name] for batch in batches])
