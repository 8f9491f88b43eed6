"""File names and the index of AugReg."""

import pytest

from vit_jax.errors import UserError
from vit_jax.pretrained import augreg

NAME = 'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0'
TUNED = f'{NAME}--imagenet2012-steps_20k-lr_0.03-res_384'
HYBRID = 'R50_L_32-i1k-300ep-lr_0.001-aug_none-wd_0.03-do_0.1-sd_0.1'
SHORT = 'R_Ti_16-i21k_30-30ep-lr_0.001-aug_strong2-wd_0.1-do_0.0-sd_0.0'


def test_a_name_tells_the_recipe():
  assert augreg.parse(NAME) == augreg.Recipe(
    model='B_16',
    dataset='i21k',
    epochs=300,
    learning_rate=0.001,
    augmentation='medium1',
    weight_decay=0.1,
    dropout=0.0,
    stochastic_depth=0.0,
  )
  tuned = augreg.parse(f'{TUNED}.npz')
  assert tuned.adapt_dataset == 'imagenet2012'
  assert tuned.adapt_steps == 20
  assert tuned.adapt_learning_rate == 0.03
  assert tuned.adapt_resolution == 384
  pets = augreg.parse(f'{HYBRID}--oxford_iiit_pet-steps_0k-lr_0.003-res_224')
  assert (pets.adapt_dataset, pets.adapt_steps) == ('oxford_iiit_pet', 0)


def test_a_name_tells_the_variant():
  assert augreg.parse(NAME).variant == 'B/16'
  assert augreg.parse(HYBRID).variant is None
  assert augreg.parse(SHORT).variant is None
  assert augreg.parse(SHORT).dataset == 'i21k_30'


@pytest.mark.parametrize(
  'name',
  [
    'B_16',
    'augreg-B/16',
    NAME.replace('-sd_0.0', ''),
    NAME.replace('300ep', '300'),
    f'{NAME}--imagenet2012',
    f'{NAME}-imagenet2012-steps_20k-lr_0.03-res_384',
    f'{NAME}.pth',
  ],
)
def test_other_names_are_refused(name):
  assert not augreg.is_name(name)
  with pytest.raises(UserError, match='not the name of an AugReg'):
    augreg.parse(name)


@pytest.fixture
def index(tmp_path):
  """Returns an index; two of its models have the best validation accuracy."""
  rows = ['filename,ds,final_val,adapt_ds,adapt_resolution,adapt_final_val']
  rows[0] += ',adapt_filename'
  for file, dataset, val in (
    (f'{NAME}', 'i21k', 0.45),
    (NAME.replace('medium1', 'light1'), 'i21k', 0.47),
    (NAME.replace('medium1', 'strong1'), 'i21k', 0.47),
    (NAME.replace('medium1', 'none'), 'i21k', 0.091),
    (NAME.replace('i21k', 'i1k'), 'i1k', 0.8),
    (NAME.replace('B_16', 'B_32'), 'i21k', 0.9),
    (HYBRID, 'i1k', 0.85),
  ):
    for data, resolution, tuned in (
      ('imagenet2012', 224, 0.9 - val),
      ('imagenet2012', 384, 0.95 - val),
      ('cifar100', 384, 0.99),
    ):
      adapted = f'{file}--{data}-steps_20k-lr_0.03-res_{resolution}'
      rows.append(
        f'{file},{dataset},{val},{data},{resolution},{tuned},{adapted}'
      )
  path = tmp_path / 'index.csv'
  path.write_text('\n'.join(rows) + '\n')
  return path


def test_the_best_upstream_model_is_chosen(index):
  # Not the B/32, not the one of i1k; of two equals the last.
  expected = NAME.replace('medium1', 'strong1')
  assert augreg.best(index, 'B/16') == expected
  assert augreg.best(index, 'B_16') == expected
  assert augreg.best(index, 'B_16', dataset='i1k') == NAME.replace(
    'i21k', 'i1k'
  )
  assert augreg.best(index, 'R50_L_32', dataset='i1k') == HYBRID


def test_the_best_fine_tuned_model_is_chosen(index):
  worst = NAME.replace('medium1', 'none')  # Upstream; tuned it is the best.
  found = augreg.best(index, 'B/16', adapt_dataset='imagenet2012')
  assert found == f'{worst}--imagenet2012-steps_20k-lr_0.03-res_384'
  found = augreg.best(
    index, 'B/16', adapt_dataset='imagenet2012', adapt_resolution=224
  )
  assert found == f'{worst}--imagenet2012-steps_20k-lr_0.03-res_224'


def test_what_the_index_does_not_have_is_an_error(index, tmp_path):
  with pytest.raises(UserError, match=r'no S_16 .*B_16, B_32, R50_L_32'):
    augreg.best(index, 'S/16')
  with pytest.raises(UserError, match='fine-tuned on pets'):
    augreg.best(index, 'B/16', adapt_dataset='pets')
  with pytest.raises(UserError, match='cannot read'):
    augreg.best(tmp_path / 'absent.csv', 'B/16')
  (tmp_path / 'other.csv').write_text('a,b\n1,2\n')
  with pytest.raises(UserError, match=r'no columns .*final_val'):
    augreg.best(tmp_path / 'other.csv', 'B/16')
