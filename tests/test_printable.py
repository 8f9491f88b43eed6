"""Nothing in a text from outside reaches the terminal as a command to it."""

import json

import pytest

from vit_jax.printable import printable, printable_json, printable_lines


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


def test_json_reads_the_same_and_has_no_control_characters():
  value = {'é\x1b[31m\x9b\u202e\U000e0041': ['\n', 1.5, None], 'b': '猫'}
  text = printable_json(value, indent=1)
  assert json.loads(text) == value
  assert 'é' in text and '猫' in text
  assert r'\u001b[31m\u009b\u202e\udb40\udc41' in text
  assert not set('\x1b\x9b\u202e\U000e0041') & set(text)
