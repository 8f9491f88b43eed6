"""Nothing in a text from outside reaches the terminal as a command to it."""

import pytest

from vit_jax.printable import printable, printable_lines


@pytest.mark.parametrize(
  'text, want',
  [
    ('plain, große 猫', 'plain, große 猫'),
    ('\x1b[31mred\x1b[0m', r'\x1b[31mred\x1b[0m'),
    ('\x1b]0;title\x07', r'\x1b]0;title\x07'),
    ('\x9b31m', r'\x9b31m'),
    ('\u202egnp.exe', r'\u202egnp.exe'),
    ('two\nlines\r', r'two\nlines\r'),
    ('\udc80', r'\udc80'),
    ('\u2028', r'\u2028'),
    ('👩\u200d🚀', '👩\u200d🚀'),
    (7, '7'),
  ],
)
def test_control_characters_are_written_as_escapes(text, want):
  assert printable(text) == want


def test_long_text_is_cut():
  assert printable('abcdefghij', max_length=8) == 'abcde...'
  assert printable('abcdefgh', max_length=8) == 'abcdefgh'


def test_lines_stay_lines():
  assert printable_lines('a\x1b\nb\n') == 'a\\x1b\nb\n'
