"""Broken folders of timm and Hugging Face, each made from a good one."""

import json
import os

import pytest

from tests.pretrained.broken import NESTED, collect

CASES, case, _ = collect()


def with_config(path, changes, file='config.json'):
  value = json.loads((path / file).read_text())
  (path / file).write_text(json.dumps(value | changes))


def with_text(path, text, file='config.json'):
  (path / file).write_text(text)


def with_index(path, index):
  (path / 'model.safetensors').rename(path / 'model-1.safetensors')
  (path / 'model.safetensors.index.json').write_text(json.dumps(index))


def instead(path, make, file='config.json'):
  (path / file).unlink(missing_ok=True)
  make(path / file)


for name, changes in {
  'id2label is a list of lists': {'id2label': [['a', 'b'], 1]},
  'id2label with keys of text': {'id2label': {'a': 'b'}},
  'id2label with a gap': {'id2label': {'0': 'a', '7': 'b'}},
  'id2label with numbers as names': {'id2label': {'0': 1}},
  'image_size x': {'image_size': 'x'},
  'image_size -16': {'image_size': -16},
  'image_size of three': {'image_size': [16, 16, 16]},
  'image_size 10^400': {'image_size': 10**400},
  'layer_norm_eps abc': {'layer_norm_eps': 'abc'},
  'layer_norm_eps infinite': {'layer_norm_eps': float('inf')},
  'num_hidden_layers 10^9': {'num_hidden_layers': 10**9},
  'num_hidden_layers x': {'num_hidden_layers': 'x'},
  'hidden_size 10^9': {'hidden_size': 10**9},
  'hidden_size 10^400': {'hidden_size': 10**400},
  'num_attention_heads 0': {'num_attention_heads': 0},
  'num_attention_heads 5': {'num_attention_heads': 5},
  'model_type a list': {'model_type': ['vit']},
  'hidden_act a list': {'hidden_act': ['gelu']},
  'a vision_config that is a text': {
    'model_type': 'siglip',
    'vision_config': 'x',
  },
}.items():
  case(name, 'huggingface', with_config, changes)
case('a list', 'huggingface', with_text, '[1]')
case('deep JSON', 'huggingface', with_text, NESTED)
case('no JSON', 'huggingface', with_text, '{"a')
case(
  'no UTF-8', 'huggingface', lambda p: (p / 'config.json').write_bytes(b'\xff')
)
case('a pipe', 'huggingface', instead, os.mkfifo)
case('a folder', 'huggingface', instead, os.mkdir)
case('a device', 'huggingface', instead, lambda p: p.symlink_to('/dev/zero'))
case(
  'a pipe as weights', 'huggingface', instead, os.mkfifo, 'model.safetensors'
)
case(
  'endless preprocessing',
  'huggingface',
  instead,
  lambda p: p.symlink_to('/dev/zero'),
  'preprocessor_config.json',
)
for name, changes in {
  'image_mean of 2': {'image_mean': [0.5, 0.5]},
  'image_mean of texts': {'image_mean': ['a', 'b', 'c']},
  'image_std of zeros': {'image_std': [0, 0, 0]},
  'no image_std': {'image_std': None},
  'resample 99': {'resample': 99},
  'resample -9': {'resample': -9},
  'resample x': {'resample': 'x'},
  'a size of texts': {'size': {'height': 'x', 'width': 'y'}},
  'a size without a width': {'size': {'height': 3}},
  'a size of 10^9': {'size': {'height': 10**9, 'width': 10**9}},
  'a crop without a width': {'do_center_crop': True, 'crop_size': {'a': 3}},
  'a crop of text': {'do_center_crop': True, 'crop_size': 'abc'},
}.items():
  case(name, 'huggingface', with_config, changes, 'preprocessor_config.json')
for name, index in {
  'a list as index': [1],
  'an index without a weight_map': {'metadata': {}},
  'an empty weight_map': {'weight_map': {}},
  'a list as weight_map': {'weight_map': ['a']},
  'an index of numbers': {'weight_map': {'a': 3}},
  'an index of null': {'weight_map': {'a': None}},
  'an index outside': {'weight_map': {'a': '../model.safetensors'}},
  'an index of files that are not there': {
    'weight_map': {'a': 'x.safetensors'}
  },
}.items():
  case(name, 'huggingface', with_index, index)
for name, changes in {
  'embed_dim x': {'model_args': {'embed_dim': 'x'}},
  'depth 10^9': {'model_args': {'depth': 10**9}},
  'num_heads 0': {'model_args': {'num_heads': 0}},
  'a list as model_args': {'model_args': [1]},
  'a list as act_layer': {'model_args': {'act_layer': ['gelu']}},
  'a list as architecture': {'architecture': ['vit']},
  'a text as pretrained_cfg': {'pretrained_cfg': 'x'},
  'input_size of texts': {'pretrained_cfg': {'input_size': ['a', 'b', 'c']}},
  'input_size of one': {'pretrained_cfg': {'input_size': [3]}},
  'crop_pct 10^-9': {
    'pretrained_cfg': {'input_size': [3, 32, 32], 'crop_pct': 1e-9}
  },
  'crop_pct 0': {'pretrained_cfg': {'input_size': [3, 32, 32], 'crop_pct': 0}},
  'crop_pct 10^9': {
    'pretrained_cfg': {'input_size': [3, 32, 32], 'crop_pct': 1e9}
  },
  'mean of 2, std of 3': {
    'pretrained_cfg': {'mean': [0.1, 0.2], 'std': [1, 1, 1]}
  },
  'interpolation of numbers': {'pretrained_cfg': {'interpolation': 3}},
  'label_names of numbers': {'label_names': [1, 2, 3, 4, 5]},
  'label_names with keys of text': {'label_names': {'a': 'b'}},
}.items():
  case(name, 'timm', with_config, changes)


@pytest.mark.parametrize('name', CASES)
def test_a_broken_file_is_one_error(name, check_refused):
  check_refused(*CASES[name])
