"""Twenty steps of recipes equal those of torch's and timm's optimizers.

The optimizer is the section of the recipe, on a run of twenty steps; the model
is a tiny one that our export carries to timm, so that both sides have the same
initial values, and the same batches. torch computes in float64. We compute

* in float32, with the training step itself: losses, gradients and updates;
* in float64, with torch's gradients: the optimizer alone.

torch's optimizers get our learning rates, update by update; that those are the
authors' is for `test_schedules.py`.
"""

import numpy as np
import pytest

from tests.optim import twenty_steps
from vit_jax.pretrained.names import vit as names
from vit_jax.pretrained.weights import Weights, build_model


@pytest.fixture(scope='module')
def torch():
  torch = pytest.importorskip('torch')
  before = torch.get_num_threads()
  torch.set_num_threads(1)  # So small products are slower with more.
  yield torch
  torch.set_num_threads(before)


@pytest.fixture(scope='module')
def timm(torch):
  """Returns timm with its optimizers and losses."""
  pytest.importorskip('timm.optim')
  pytest.importorskip('timm.loss')
  return pytest.importorskip('timm')


class Twin:
  """timm's model of a recipe's tiny one, in float64."""

  def __init__(self, timm, torch, recipe, class_row=False):
    """Makes the model.

    Args:
      timm: the module.
      torch: the module.
      recipe: of `twenty_steps`.
      class_row: whether the position table has a row for the class token, as
        DeiT's has and ours have not.
    """
    self._class_row = class_row
    self._shapes = {name: x.shape for name, x in recipe.params.items()}
    # The export of the numbers 0, 1, ... shows where each parameter goes.
    ends = np.cumsum([x.size for x in recipe.params.values()])
    counted = np.split(np.arange(ends[-1]), ends[:-1])
    self._numbers = {
      name: numbers.reshape(shape)
      for (name, shape), numbers in zip(
        self._shapes.items(), counted, strict=True
      )
    }
    weights = Weights(self._numbers, recipe.model)
    self._places, files = names.timm.write(weights, build_model(weights))
    arguments = files['config']['model_args']
    self.model = timm.create_model(
      files['config']['architecture'],
      num_classes=files['config']['num_classes'],
      **arguments | dict(no_embed_class=not class_row),
    ).double()
    flat = np.concatenate([x.ravel() for x in recipe.params.values()])
    state = {n: torch.tensor(flat[x]) for n, x in self._places.items()}
    if class_row:
      table = state['pos_embed']
      state['pos_embed'] = torch.cat([0 * table[:, :1], table], 1)
    self.model.load_state_dict(state)

  def params(self):
    """Returns the parameters of now by our names."""
    theirs = {n: p.detach().numpy() for n, p in self.model.named_parameters()}
    if self._class_row:
      table = theirs['pos_embed']
      # Only their sum is seen by the blocks.
      theirs['cls_token'] = theirs['cls_token'] + table[:, :1]
    return self._by_our_names(theirs)

  def gradients(self):
    """Returns the gradients of now by our names."""
    return self._by_our_names(
      {n: p.grad.numpy() for n, p in self.model.named_parameters()}
    )

  def _by_our_names(self, theirs):
    flat = np.full(sum(x.size for x in self._numbers.values()), np.nan)
    assert theirs.keys() == self._places.keys()
    for name, places in self._places.items():
      x = theirs[name]
      if name == 'pos_embed' and self._class_row:
        x = x[:, 1:]
      flat[places] = x
    return {name: flat[numbers] for name, numbers in self._numbers.items()}


def train(torch, twin, recipe, batches, optimizer, loss_fn, clip_norm=None):
  """Returns parameters, losses and gradients of twenty steps of torch.

  Args:
    torch: the module.
    twin: see there.
    recipe: of `twenty_steps`, for its rates and `mu_dtype`.
    batches: likewise.
    optimizer: of torch.
    loss_fn: of logits and labels.
    clip_norm: largest norm of all gradients. It is exact as in optax; torch's
      own function divides by 1e-6 more than the norm.
  """
  losses, gradients = [], []
  for batch, rate in zip(batches, recipe.rates(), strict=True):
    image = torch.tensor(batch['image']).double().permute(0, 3, 1, 2)
    label = torch.tensor(batch['label'])
    label = label.double() if label.is_floating_point() else label.long()
    optimizer.zero_grad()
    loss = loss_fn(twin.model(image), label)
    loss.backward()
    losses.append(loss.item())
    gradients.append(twin.gradients())
    if clip_norm is not None:
      grads = [p.grad for p in twin.model.parameters()]
      norm = torch.nn.utils.get_total_norm(grads).item()
      torch._foreach_div_(grads, max(1.0, norm / clip_norm))
    for group in optimizer.param_groups:
      group['lr'] = rate
    optimizer.step()
    if recipe.optimizer.get('mu_dtype') == 'bfloat16':
      for state in optimizer.state.values():  # torch itself rounds nothing.
        momentum = state['momentum_buffer']
        momentum.copy_(momentum.to(torch.bfloat16))
  return dict(params=twin.params(), loss=losses, gradients=gradients)


def assert_same_training(recipe, batches, theirs, rtol):
  """Compares with the training step in float32."""
  ours = recipe.train(batches)
  np.testing.assert_allclose(ours['loss'], theirs['loss'], rtol=3e-6)
  recipe.assert_same_changes(
    ours['params'], theirs['params'], rtol=rtol, rounded=True
  )
  clip_norm = recipe.optimizer.get('grad_clip_norm')
  if clip_norm is not None:  # Some are clipped and some are not.
    assert ours['grad_norm'].min() < 0.8 * clip_norm
    assert ours['grad_norm'].max() > 1.3 * clip_norm


def assert_same_optimizer(recipe, theirs, rtol):
  """Compares with our updates in float64 from their gradients."""
  alone = recipe.replay(theirs['gradients'])
  recipe.assert_same_changes(alone, theirs['params'], rtol=rtol)


def groups(timm, model):
  """Returns a model's parameters with and without weight decay, by timm."""
  return timm.optim.param_groups_weight_decay(
    model, 0.05, no_weight_decay_list=model.no_weight_decay()
  )


def test_adamw_of_deit_equals_torch(torch, timm):
  recipe = twenty_steps.Recipe('deit_b16_i1k', 'variant=B/16')
  batches = twenty_steps.batches('smooth')
  twin = Twin(timm, torch, recipe, class_row=True)
  theirs = train(
    torch,
    twin,
    recipe,
    batches,
    torch.optim.AdamW(groups(timm, twin.model), betas=(0.9, 0.999), eps=1e-8),
    timm.loss.SoftTargetCrossEntropy(),
  )
  assert_same_training(recipe, batches, theirs, rtol=1e-4)
  # Adam's corrections for its start are float32.
  assert_same_optimizer(recipe, theirs, rtol=5e-7)


def test_lamb_of_deit3_equals_timm(torch, timm):
  recipe = twenty_steps.Recipe('deit3_i1k', 'variant=B/16')
  batches = twenty_steps.batches('mixed')
  twin = Twin(timm, torch, recipe)
  theirs = train(
    torch,
    twin,
    recipe,
    batches,
    timm.optim.Lamb(groups(timm, twin.model), eps=1e-8, max_grad_norm=1.0),
    timm.loss.BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0),
  )
  assert_same_training(recipe, batches, theirs, rtol=1e-4)
  # The norms of the trust ratio are float32.
  assert_same_optimizer(recipe, theirs, rtol=5e-7)


@pytest.mark.parametrize('mu_dtype', ['bfloat16', 'float32'])
def test_momentum_of_finetuning_equals_torch(torch, timm, mu_dtype):
  recipe = twenty_steps.Recipe(
    'finetune',
    'model=augreg-B/16,data=cifar100',
    optimizer=dict(warmup_steps=4, mu_dtype=mu_dtype),
    gain=0.1,
  )
  batches = twenty_steps.batches('integer')
  twin = Twin(timm, torch, recipe)
  theirs = train(
    torch,
    twin,
    recipe,
    batches,
    torch.optim.SGD(twin.model.parameters(), momentum=0.9),
    torch.nn.CrossEntropyLoss(),
    clip_norm=1.0,
  )
  if mu_dtype == 'bfloat16':
    # As in the recipe. Where a momentum differs in the last place of float32,
    # that of bfloat16 may be another: 2^-8 of an element.
    assert_same_training(recipe, batches, theirs, rtol=5e-3)
  else:
    assert_same_optimizer(recipe, theirs, rtol=1e-12)
