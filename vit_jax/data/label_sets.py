"""Label sets of ImageNet-1k and of test sets made for its classifiers.

A test set's own labels become classes of a model by the names of its classes,
or, for ReaL, by the number of the image. In a config or on the
command line a label set is a text:

  imagenet         folders named by WordNet ids, any of the 1,000
  imagenet-sketch  likewise (arXiv:1905.13549)
  imagenet-v2      folders 0 to 999 of one of its three sets (arXiv:1902.10811)
  imagenet-a       natural adversarial examples (arXiv:1907.07174); answers are
                   taken among its 200 classes
  imagenet-r       renditions (arXiv:2006.16241); likewise
  objectnet:/path  ObjectNet (Barbu et al. 2019); the path of the folder
                   `mappings` that comes with its images
  real:/path       ReaL (arXiv:2006.07159); the path of `real.json`, for the
                   50,000 images of the validation set, whose files keep their
                   names
  real             ReaL where the source has lists of labels: `label_key=
                   'real_label'` of TFDS' imagenet2012_real

The 200 classes are those of the authors' `eval.py` (github.com/hendrycks/
natural-adv-examples, github.com/hendrycks/imagenet-r), in imagenet_synsets.txt.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from vit_jax import files, suggestions
from vit_jax.errors import UserError
from vit_jax.printable import printable

NUM_CLASSES = 1000
_SYNSETS = pathlib.Path(__file__).with_name('imagenet_synsets.txt')
_IMAGE = re.compile(r'ILSVRC2012_val_(\d{8})(?!\d)')
_NUM_IMAGES = 50_000


@dataclasses.dataclass(frozen=True)
class LabelSet:
  """What the labels of a test set mean for a model.

  Attributes:
    name: as in a config.
    of_class: model classes by the name of a class of the data. A name that is
      not in it is an error, one with no classes has images that do not count.
    of_image: model classes of the images of the validation set, in the order of
      their numbers; replaces `of_class`.
    scored: classes among which an answer is taken, ascending; None is all.
    border: pixels that are cut off each side of an image.
    num_classes: of the model.
  """

  name: str
  of_class: Mapping[str, Sequence[int]] | None = None
  of_image: Sequence[Sequence[int]] | None = None
  scored: tuple[int, ...] | None = None
  border: int = 0
  num_classes: int = NUM_CLASSES


def find(text: str | Sequence[str]) -> LabelSet:
  """Returns a label set; see the module's docstring.

  Names of classes in the order of a model make the set that goes by them.

  Raises:
    UserError: an unknown name, or files that are missing or something else.
  """
  if not isinstance(text, str):
    ids = {name: (i,) for i, name in enumerate(text)}
    return LabelSet('names', of_class=ids, num_classes=len(text))
  name, colon, path = text.partition(':')
  if name in _PLAIN and not colon:
    return _PLAIN[name]()
  if name in _FROM_FILES and path:
    return _FROM_FILES[name](pathlib.Path(path).expanduser())
  known = [*_PLAIN, *(f'{name}:/path' for name in _FROM_FILES)]
  near = suggestions.close(text, known)
  hint = f' (did you mean {near!r}?)' if near else ''
  raise UserError(
    f'labels={text!r}{hint}: expected one of {", ".join(known)}; '
    'vit_jax/data/label_sets.py describes them'
  )


@functools.cache
def synsets() -> dict[str, str]:
  """Returns 'A', 'R', 'AR' or '' by WordNet id, in the order of the classes."""
  lines = (line.split() for line in _SYNSETS.read_text().splitlines())
  return {synset: ''.join(subsets) for synset, *subsets in lines}


def _imagenet(name: str, subset: str = '') -> LabelSet:
  ids = {synset: (i,) for i, synset in enumerate(synsets())}
  scored = None
  if subset:
    found = enumerate(synsets().values())
    scored = tuple(i for i, subsets in found if subset in subsets)
  return LabelSet(name, of_class=ids, scored=scored)


def _imagenet_v2() -> LabelSet:
  ids = {str(i): (i,) for i in range(NUM_CLASSES)}
  # Sources of TFDS name them by WordNet ids.
  return LabelSet('imagenet-v2', of_class=ids | _imagenet('').of_class)


def _real(path: pathlib.Path) -> LabelSet:
  labels = files.read_json(path)
  fits = isinstance(labels, list) and all(
    isinstance(ids, list)
    and all(type(i) is int and 0 <= i < NUM_CLASSES for i in ids)
    for ids in labels
  )
  if not fits or len(labels) != _NUM_IMAGES:
    count = f' of {len(labels):,}' if isinstance(labels, list) else ''
    raise UserError(
      f'{path}: expected a JSON list of {_NUM_IMAGES:,} lists of class ids, 0 '
      f'to {NUM_CLASSES - 1}; got a {type(labels).__name__}{count}. Give the '
      'real.json of github.com/google-research/reassessed-imagenet'
    )
  return LabelSet('real', of_image=labels)


def _objectnet(folder: pathlib.Path) -> LabelSet:
  """Reads the four files that come with ObjectNet.

  An object has the ImageNet classes that the authors list for it; of its 313
  objects 113 have any. The images have a red border of two pixels.
  """
  if (folder / 'mappings').is_dir():
    folder /= 'mappings'
  read = files.read_json_object
  title_of_folder = read(folder / 'folder_to_objectnet_label.json')
  names_of_title = read(folder / 'objectnet_to_imagenet_1k.json')
  line_of_class = read(folder / 'pytorch_to_imagenet_2012_id.json')
  lines = folder / 'imagenet_to_label_2012_v2'
  files.check_regular(lines)
  try:
    class_of_line = {line: int(i) for i, line in line_of_class.items()}
    text = lines.read_text(encoding='utf-8')
    class_of_name = {
      name.strip(): class_of_line[i]
      for i, name in enumerate(text.splitlines())
      if name.strip()
    }
    of_class = {
      name: [
        class_of_name[x.strip()]
        for x in names_of_title.get(title, '').split(';')
        if x.strip()
      ]
      for name, title in title_of_folder.items()
    }
    fits = all(0 <= i < NUM_CLASSES for i in class_of_name.values())
  except (AttributeError, KeyError, OSError, TypeError, ValueError) as e:
    reason = printable(f'{type(e).__name__}: {e}', max_length=200)
    raise UserError(
      f'{folder}: the files do not fit together ({reason}); give the folder '
      'mappings of ObjectNet'
    ) from e
  if not fits:
    raise UserError(
      f'{folder}: pytorch_to_imagenet_2012_id.json has classes outside 0 .. '
      f'{NUM_CLASSES - 1}; give the folder mappings of ObjectNet'
    )
  return LabelSet('objectnet', of_class=of_class, border=2)


def image_number(words: str) -> int | None:
  """Returns the place of a file of ImageNet's validation set, from 0."""
  found = _IMAGE.findall(os.path.basename(words)) or _IMAGE.findall(words)
  number = int(found[-1]) if found else 0
  return number - 1 if 1 <= number <= _NUM_IMAGES else None


_PLAIN: dict[str, Callable[[], LabelSet]] = {
  'imagenet': functools.partial(_imagenet, 'imagenet'),
  'imagenet-sketch': functools.partial(_imagenet, 'imagenet-sketch'),
  'imagenet-v2': _imagenet_v2,
  'imagenet-a': functools.partial(_imagenet, 'imagenet-a', 'A'),
  'imagenet-r': functools.partial(_imagenet, 'imagenet-r', 'R'),
  'real': functools.partial(LabelSet, 'real'),
}
_FROM_FILES: dict[str, Callable[[pathlib.Path], LabelSet]] = {
  'objectnet': _objectnet,
  'real': _real,
}
