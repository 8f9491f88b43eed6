"""The text that lists ops on the host."""

import numpy as np
import pytest

from vit_jax.data import ops_language
from vit_jax.errors import UserError

USER_OPS = """
def tell(*args, **kwargs):
  def op(example, rng):
    return example | {'told': example.get('told', ()) + ((args, kwargs),)}
  return op

def draw():
  return lambda example, rng: example | {'drawn': rng.random()}

def forget():
  return lambda example, rng: None

def trip():
  def op(example, rng):
    raise KeyError('depth')
  return op

def no_op():
  return 3

def picky(size):
  raise TypeError('size must be even')

nothing = None
"""


@pytest.fixture
def user_ops(tmp_path, monkeypatch):
  (tmp_path / 'their_project').mkdir()
  (tmp_path / 'their_project' / 'ops.py').write_text(USER_OPS)
  monkeypatch.syspath_prepend(tmp_path)


def told(text):
  return ops_language.parse(text, trusted=True)(
    {}, np.random.default_rng(0)
  ).get('told', ())


def error(text):
  with pytest.raises(UserError) as e:
    ops_language.parse(text, trusted=True)
  return str(e.value)


def test_ops_run_from_left_to_right(user_ops):
  assert [args for args, _ in told(
    'their_project.ops.tell(1)|their_project.ops.tell(2)'
  )] == [(1,), (2,)]  # fmt: skip


def test_all_literals_arrive_as_they_are_written(user_ops):
  args = "-1, 2.5e-3, 'x', (1, [2, {'k': None}]), True, b'z'"
  got = told(f'their_project.ops.tell({args}, key=(1,), other=False)')
  assert got == (
    ((-1, 2.5e-3, 'x', (1, [2, {'k': None}]), True, b'z'),
     {'key': (1,), 'other': False}),
  )  # fmt: skip


@pytest.mark.parametrize(
  'string',
  [
    'a|b',
    ')',
    '|(',
    "it's",
    'say "no|"',
    'back\\slash|',
    '\\',
    '#|',
    'it\'s "a|b"',
  ],
)
def test_quoted_strings_may_contain_anything(user_ops, string):
  text = f'their_project.ops.tell({string!r})|their_project.ops.tell'
  assert told(text) == (((string,), {}), ((), {}))


def test_blanks_newlines_and_empty_segments_do_not_matter(user_ops):
  text = """
    | their_project.ops.tell(1,
        2) ||
    their_project.ops.tell |"""
  assert [args for args, _ in told(text)] == [(1, 2), ()]
  assert told('') == ()


def test_nothing_is_evaluated(tmp_path):
  victim = tmp_path / 'victim'
  text = f"resize(__import__('pathlib').Path({str(victim)!r}).touch())"
  assert 'is not a literal' in error(text)
  assert not victim.exists()
  assert "'2 * 112' is not a literal" in error('resize(2 * 112)')
  assert "'size' is not a literal" in error('resize(size)')
  assert '** is not supported' in error("resize(**{'size': 3})")
  assert 'expected name or name(arguments)' in error('resize(3)(4)')
  assert 'expected name or name(arguments)' in error('resize + 3')
  assert 'expected name or name(arguments)' in error('lambda: 3')


def test_a_syntax_error_shows_its_segment():
  message = error('decode|resize(32|flip_lr')
  assert "cannot read the op 'resize(32|flip_lr': '(' was never closed" in (
    message
  )
  assert "cannot read the op 'resize(32,,)'" in error('decode|resize(32,,)')
  assert "cannot read the op 'flip lr'" in error('decode|flip lr|resize(3)')


@pytest.mark.parametrize('trusted', [False, True])
@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('a' + '.a' * 1500, 'max_parts=50'),
    ('f' + '()' * 1500, 'expected name'),
    ('resize(' + '-' * 500 + '1)', 'is not a literal'),
    ('resize(' + '1+' * 900 + '1)', 'is not a literal'),
  ],
)
def test_deep_nesting_is_a_mistake_with_a_short_message(text, words, trusted):
  with pytest.raises(UserError, match=words) as e:
    ops_language.parse(f'decode|{text}', trusted=trusted)
  assert len(str(e.value)) < 400


def test_an_unknown_op_is_named_with_a_close_match_and_all_choices():
  message = error('decode|resise(32)')
  assert "unknown op 'resise' (did you mean 'resize'?)" in message
  for name in ops_language.names():
    assert name in message


def test_bad_arguments_show_the_signature_of_the_op():
  takes = "it takes: resize(size, *, method='bilinear', antialias=True"
  message = error("resize(32, metod='area')")
  assert "'metod' (did you mean 'method'?)" in message
  assert takes in message
  assert "missing a required argument: 'size'; " + takes in error('resize')
  assert 'too many positional arguments; ' + takes in error('resize(3, 4)')


def test_all_mistakes_are_reported_at_once():
  message = error('decod|resize(0)|flip_lr(rat=1)')
  for part in ("'decod'", 'resize(0): ', "'rat'"):
    assert part in message


def test_other_types_than_text_are_refused():
  assert 'got None' in error(None)
  assert "got ['decode']" in error(['decode'])


def test_a_broken_dotted_name_is_explained(user_ops):
  assert "no op named 'nowhere.ops'" in error('nowhere.ops.solarize')
  assert 'is written module.function' in error('their_project.solarize')
  assert "does not define 'solarize'" in error('their_project.ops.solarize')
  assert "'nothing' is not a function" in error('their_project.ops.nothing')
  assert 'no_op did not return an op' in error('their_project.ops.no_op')
  message = error('their_project.ops.picky(3)')
  assert 'their_project.ops.picky(3): size must be even' in message


def test_an_error_on_an_example_names_the_op(user_ops):
  rng = np.random.default_rng(0)
  with pytest.raises(UserError, match=r"^flip_lr: the example has no 'image'"):
    ops_language.parse('flip_lr', trusted=True)({'label': 3}, rng)
  with pytest.raises(KeyError) as e:
    ops_language.parse('their_project.ops.trip', trusted=True)({}, rng)
  assert e.value.__notes__ == ["in the op 'their_project.ops.trip'"]
  with pytest.raises(TypeError, match=r'ops\.forget.* returned None, expected'):
    ops_language.parse('their_project.ops.forget', trusted=True)({}, rng)


def test_ops_draw_from_the_generator_they_are_given(user_ops):
  op = ops_language.parse('their_project.ops.draw', trusted=True)
  got = op({}, np.random.default_rng(5))['drawn']
  assert got == np.random.default_rng(5).random()


def test_every_file_and_every_public_function_is_an_op():
  assert {'decode', 'resize', 'random_resized_crop'} <= set(
    ops_language.names()
  )
  assert {'resize_small', 'central_crop', 'onehot'} <= set(ops_language.names())
  hidden = {'language', 'geometry', 'label', 'resample', 'image_of', '_checks'}
  assert not hidden & set(ops_language.names())
