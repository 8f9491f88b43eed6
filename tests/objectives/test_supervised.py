"""The supervised loss against answers worked by hand, on a linear model."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vit_jax.errors import UserError
from vit_jax.objectives.supervised import Objective
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.training import train_state

STATE = types.SimpleNamespace(extra={})


class Linear(nn.Module):
  """Logits are a linear map of the pixels."""

  num_classes: int | None = 3
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(self, image, *, train=False):
    features = image.reshape(len(image), -1)
    features = nn.Dropout(self.dropout_rate)(features, deterministic=not train)
    if self.num_classes is None:
      return {'features': features}
    return {'logits': nn.Dense(self.num_classes, name='head')(features)}


class Normed(nn.Module):
  """Keeps running statistics."""

  @nn.compact
  def __call__(self, image, *, train=False):
    x = image.reshape(len(image), -1)
    x = nn.BatchNorm(use_running_average=not train)(x)
    return {'logits': nn.Dense(3)(x)}


class Counting(nn.Module):
  """Counts its calls."""

  @nn.compact
  def __call__(self, image, *, train=False):
    self.variable('counts', 'calls', lambda: jnp.int32(0))
    return {'logits': image.reshape(len(image), -1)}


def _loss(label, *, model=None, **options):
  """Returns loss, metrics and, in float64, the logits of random weights."""
  objective = Objective(model or Linear(), **options)
  image = jax.random.normal(jax.random.key(0), (4, 2, 2, 1))
  batch = {'image': image, 'label': jnp.asarray(label)}
  params = objective.init(jax.random.key(1), batch)['params']
  logits = objective.predict(params, batch)['logits']
  loss, (metrics, extra) = objective.loss(
    params, STATE, batch, jax.random.key(2)
  )
  assert extra == {}
  return loss, metrics, np.float64(logits)


def _softmax_loss(logits, targets):
  log_p = scipy.special.log_softmax(logits, axis=-1)
  return -(targets * log_p).sum(-1).mean()


def _sigmoid_loss(logits, targets):
  p = scipy.special.expit(logits)
  return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(-1).mean()


REFERENCE = {'softmax': _softmax_loss, 'sigmoid': _sigmoid_loss}


@pytest.mark.parametrize('kind', REFERENCE)
@pytest.mark.parametrize('smoothing', [0.0, 0.3])
@pytest.mark.parametrize(
  'label',
  [
    np.int32([0, 2, 1, 2]),
    np.float32([[0.2, 0.8, 0], [1, 0, 0], [0, 0.5, 0.5], [0.1, 0, 0.9]]),
    np.float32([[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]),
  ],
  ids=['hard', 'soft', 'multi_hot'],
)
def test_loss_is_the_mean_cross_entropy_to_smoothed_targets(
  kind, smoothing, label
):
  loss, metrics, logits = _loss(label, loss=kind, label_smoothing=smoothing)
  targets = np.eye(3)[label] if label.ndim == 1 else label
  targets = (1 - smoothing) * targets + smoothing / 3
  np.testing.assert_allclose(loss, REFERENCE[kind](logits, targets), rtol=2e-6)
  assert metrics['loss'] == loss


def test_top1_is_of_the_batch():
  _, _, logits = _loss(np.int32([0, 0, 0, 0]))
  best = logits.argmax(-1).astype(np.int32)
  wrong = (best + 1) % 3
  label = np.where([True, True, True, False], best, wrong).astype(np.int32)
  assert _loss(label)[1]['top1'] == 0.75
  assert _loss(np.zeros((4, 3), np.float32))[1]['top1'] == 0  # Not 0 / 0.
  assert _loss(label, label_smoothing=0.9)[1]['top1'] == 0.75
  # Rows that list no class are not in the mean.
  rows = np.eye(3, dtype=np.float32)[label]
  rows[0] = 0
  np.testing.assert_allclose(_loss(rows)[1]['top1'], 2 / 3, rtol=1e-6)
  assert _loss(np.zeros_like(rows))[1]['top1'] == 0


@pytest.mark.parametrize('kind', REFERENCE)
@pytest.mark.parametrize('label', [3, -1])
def test_a_label_without_a_class_makes_the_loss_nan(kind, label):
  loss, metrics, _ = _loss(np.int32([0, 1, label, 2]), loss=kind)
  assert np.isnan(loss) and np.isnan(metrics['loss'])


def test_labels_of_another_width_are_an_error():
  with pytest.raises(UserError, match=r'float32\[4, 5\].*num_classes=3'):
    _loss(np.zeros((4, 5), np.float32))


def test_dropout_acts_in_the_loss_and_not_in_predict():
  model = Linear(dropout_rate=0.5)
  loss, _, logits = _loss(np.int32([0, 1, 2, 0]), model=model)
  kept = _softmax_loss(logits, np.eye(3)[[0, 1, 2, 0]])
  assert abs(loss - kept) > 1e-3
  np.testing.assert_array_equal(logits, _loss(np.int32([0, 1, 2, 0]))[2])


def test_a_model_without_logits_is_an_error():
  batch = {'image': jax.ShapeDtypeStruct((4, 2, 2, 1), jnp.float32)}
  objective = Objective(Linear(num_classes=None))
  with pytest.raises(UserError, match=r'no logits.*set model.num_classes'):
    objective.init(jax.random.key(0), batch)


class WithoutTrain(nn.Module):
  def __call__(self, x):
    return {'logits': x}


class Array(nn.Module):
  @nn.compact
  def __call__(self, image, *, train):
    return nn.Dense(3)(image.reshape(len(image), -1))


@pytest.mark.parametrize(
  ('model', 'words'),
  [
    (WithoutTrain(), r'WithoutTrain.__call__\(self, x\) does not take train'),
    (Array(), r'returns an array \[1, 3\], not a dict'),
  ],
)
def test_a_model_that_is_called_otherwise_is_an_error(model, words):
  batch = {'image': jax.ShapeDtypeStruct((4, 2, 2, 1), jnp.float32)}
  contract = r"; a model's __call__\(image, train=\.\.\.\) returns a dict with"
  with pytest.raises(UserError, match=words + contract):
    jax.eval_shape(
      lambda rng: Objective(model).init(rng, batch), jax.random.key(0)
    )


@pytest.mark.parametrize('num_devices', [1, 8])
def test_batch_statistics_are_of_the_whole_batch_and_used_in_predict(
  num_devices,
):
  image = np.random.default_rng(0).normal(2, 3, (16, 2, 2, 1)).astype('f')
  label = np.arange(16, dtype=np.int32) % 3
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:num_devices])
  batch = jax.device_put(
    {'image': image, 'label': label}, mesh_lib.batch_sharding(mesh)
  )
  objective = Objective(Normed())
  branches = objective.init(jax.random.key(0), batch)
  state = train_state.TrainState(0, None, None, extra=branches['extra'])
  _, (_, extra) = jax.jit(objective.loss)(
    branches['params'], state, batch, jax.random.key(1)
  )
  found = extra['batch_stats']['BatchNorm_0']
  x = image.reshape(16, 4)
  # As flax averages them, from a mean of 0 and a variance of 1.
  mean, var = 0.01 * x.mean(0), 0.99 + 0.01 * x.var(0)
  np.testing.assert_allclose(found['mean'], mean, rtol=1e-5)
  np.testing.assert_allclose(found['var'], var, rtol=1e-5)
  logits = objective.predict(branches['params'], batch, extra=extra)['logits']
  dense = branches['params']['Dense_0']
  want = (x - mean) / np.sqrt(var + 1e-5) @ np.asarray(dense['kernel'])
  np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)


def test_a_model_with_another_collection_is_an_error():
  batch = {'image': jax.ShapeDtypeStruct((4, 2, 2, 1), jnp.float32)}
  with pytest.raises(UserError, match=r"Counting has .*\['counts'\]"):
    Objective(Counting()).init(jax.random.key(0), batch)


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(loss='hinge'), "loss='hinge'; expected one of"),
    (dict(label_smoothing=1.0), r'label_smoothing=1\.0 must lie in \[0, 1\)'),
    (dict(label_smoothing=-0.1), r'label_smoothing=-0\.1 must lie'),
    (dict(target_threshold=0.1), 'target_threshold=0.1 has no effect with'),
    (dict(class_reduction='mean'), "class_reduction='mean' has no effect"),
    (dict(loss='sigmoid', target_threshold=1), 'target_threshold=1: '),
    (dict(loss='sigmoid', class_reduction='max'), "'max': 'sum' or 'mean'"),
  ],
)
def test_impossible_options_are_errors(options, message):
  with pytest.raises(UserError, match=message):
    Objective(Linear(), **options)


MIXED = np.float32([[0.3, 0.7, 0], [1, 0, 0], [0, 0.05, 0.95], [0.1, 0, 0.9]])


@pytest.mark.parametrize('threshold, smoothing', [(0.0, 0.0), (0.2, 0.3)])
def test_a_threshold_makes_mixed_classes_right_or_wrong(threshold, smoothing):
  loss, metrics, logits = _loss(
    MIXED,
    loss='sigmoid',
    label_smoothing=smoothing,
    target_threshold=threshold,
    class_reduction='mean',
  )
  # Of DeiT-III both classes of a mixture; of 0.2 not what is almost unseen.
  right = {
    0.0: [[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 0, 1]],
    0.2: [[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]],
  }[threshold]
  want = _sigmoid_loss(logits, np.array(right)) / 3
  np.testing.assert_allclose(loss, want, rtol=2e-6)
  # The right answer is still the class with the larger weight.
  best = logits.argmax(-1) == MIXED.argmax(-1)
  np.testing.assert_allclose(metrics['top1'], best.mean())


def test_a_label_without_a_class_is_nan_over_a_threshold_too():
  loss, _, _ = _loss(
    np.int32([0, 1, 3, 2]), loss='sigmoid', target_threshold=0.0
  )
  assert np.isnan(loss)


def test_the_loss_with_a_threshold_equals_torch():
  torch = pytest.importorskip('torch')
  loss, _, logits = _loss(
    MIXED, loss='sigmoid', target_threshold=0.0, class_reduction='mean'
  )
  want = torch.nn.functional.binary_cross_entropy_with_logits(
    torch.tensor(logits), torch.tensor(MIXED).gt(0.0).to(torch.float64)
  )
  np.testing.assert_allclose(loss, want.item(), rtol=2e-6)


def test_smoothing_over_the_threshold_is_an_error():
  with pytest.raises(UserError, match='all targets would be 1'):
    _loss(MIXED, loss='sigmoid', target_threshold=0.05, label_smoothing=0.3)
