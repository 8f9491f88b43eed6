"""The table of what the fields of a ViT mean, and those who read it."""

from vit_jax import lookup
from vit_jax.models import vit


def test_every_field_has_a_kind():
  listed = {field for fields in vit.FIELDS.values() for field in fields}
  fields = set(vit.ViT.__dataclass_fields__) - {'parent', 'name'}
  assert listed == fields, 'give every field of ViT a kind in FIELDS'
  assert set(vit.FIELDS['unseen']) <= set(vit.FIELDS['computes'])
  assert {'patch_size', *vit.VARIANTS['B']} == set(vit.FIELDS['size'])


def test_fields_are_looked_up_by_the_name_in_a_section(tmp_path, monkeypatch):
  section = {'name': 'vit', 'variant': 'B/16'}
  assert lookup.model_fields(section, 'cost', 'layout') == (
    'attention',
    'remat',
    'scan',
  )
  (tmp_path / 'my_models').mkdir()
  (tmp_path / 'my_models' / 'cait.py').write_text("FIELDS = {'cost': ('x',)}\n")
  monkeypatch.syspath_prepend(tmp_path)
  own = {'name': 'my_models.cait'}
  # A name out of a file is not imported.
  assert lookup.model_fields(own, 'cost') == ()
  assert lookup.model_fields(own, 'cost', trusted=True) == ('x',)
  assert lookup.model_fields({'name': 'unknown'}, 'cost') == ()
