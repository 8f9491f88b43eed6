"""Names of leaves, and rules over names."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import trees
from vit_jax.errors import UserError

TREE = {'encoder': {'mlp': {'kernel': 1, 'bias': 2}}, 'head': {'kernel': 3}}
NAMES = ['encoder/mlp/bias', 'encoder/mlp/kernel', 'head/kernel']


def test_flatten_names_leaves_in_the_order_of_jax():
  flat = trees.flatten(TREE)
  assert list(flat) == NAMES
  assert list(flat.values()) == jax.tree.leaves(TREE)


def test_unflatten_undoes_flatten():
  assert trees.unflatten(trees.flatten(TREE)) == TREE


@flax.struct.dataclass
class _State:
  step: int
  opt_state: tuple
  extra: list


def test_names_run_through_dataclasses_named_tuples_and_lists():
  adam = optax.scale_by_adam().init({'head': {'kernel': jnp.zeros(1)}})
  state = _State(step=0, opt_state=(adam,), extra=[4, {'queue': 5}])
  assert list(trees.flatten(state)) == [
    'step',
    'opt_state/0/count',
    'opt_state/0/mu/head/kernel',
    'opt_state/0/nu/head/kernel',
    'extra/0',
    'extra/1/queue',
  ]


def test_map_named_gives_each_leaf_its_name_and_keeps_the_structure():
  other = jax.tree.map(lambda x: 10 * x, TREE)
  mapped = trees.map_named(lambda name, a, b: (name, a + b), TREE, other)
  assert mapped['encoder']['mlp']['bias'] == ('encoder/mlp/bias', 22)
  assert mapped['head']['kernel'] == ('head/kernel', 33)


def test_map_named_skips_masked_leaves():
  masked = {'a': optax.MaskedNode(), 'b': np.float32(1)}
  seen = []
  trees.map_named(lambda name, _: seen.append(name), masked)
  assert seen == ['b']


def test_the_first_rule_that_matches_the_whole_name_wins():
  rules = [('head/.*', 'h'), ('.*/kernel', 'k'), ('.*', 'rest')]
  assert trees.match_rules(rules, NAMES, 'rules') == {
    'encoder/mlp/bias': 'rest',
    'encoder/mlp/kernel': 'k',
    'head/kernel': 'h',
  }


def test_a_part_of_a_name_is_no_match():
  with pytest.raises(UserError, match='no rule matches head/kernel'):
    trees.match_rules([('encoder/.*', 1), ('head', 2)], NAMES, 'rules')


def test_every_mistake_in_the_rules_is_reported_at_once():
  rules = [('.*/kernel', 1), ('head/kernel', 2), ('hed/.*', 3)]
  with pytest.raises(UserError) as error:
    trees.match_rules(rules, NAMES, 'optimizer.rules')
  text = str(error.value)
  assert text.startswith('optimizer.rules: ')
  assert 'no rule matches encoder/mlp/bias' in text
  assert "rule 'head/kernel' decides no parameter" in text
  assert "rule 'hed/.*' decides no parameter" in text


def test_a_last_rule_for_the_rest_may_find_nothing_left():
  rules = [('.*/.*', 1), ('.*', 2)]
  assert set(trees.match_rules(rules, NAMES, 'rules').values()) == {1}


def test_a_broken_regular_expression_is_named():
  with pytest.raises(UserError, match=r"'\*\.kernel' is not a regular"):
    trees.match_rules([('*.kernel', 1)], NAMES, 'rules')
