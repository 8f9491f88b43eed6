"""A source whose labels become classes of a model, by a label set.

For the test sets of `data/label_sets.py`. Evaluators make it of their key
`labels`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data import fields, label_sets, open_source
from vit_jax.data.ops import decode
from vit_jax.errors import UserError
from vit_jax.printable import printable


class Source:
  """Examples of another source; `label` is an int or float32 `[Y]`.

  It is a vector where images of the set may have several right classes, or
  none, in which case they do not count.
  """

  def __init__(
    self, split: str, *, data: Mapping[str, Any], labels: str | Sequence[str]
  ):
    """Opens the source.

    Args:
      split: of a source that does not name its own.
      data: its section.
      labels: the label set, such as 'imagenet-a' or 'real:/data/real.json', or
        the names of the model's classes in their order.

    Raises:
      UserError: classes that the label set does not know, and what opening the
        source or the files of the set raises.
    """
    self._set = label_sets.find(labels)
    self.num_classes = self._set.num_classes
    known = list(self._set.of_class or ())
    # ImageNet-V2 knows each class by two names, ObjectNet others.
    self.class_names = known if len(known) == self.num_classes else None
    section = {'split': split} | dict(data)
    self._source = open_source.open_source(section, where='data')
    self.fields = fields.declared(self._source)
    self.column_texts = self._source.column_texts
    self._ids = self._ids_of_classes()
    self._is_vector = self._ids is None or any(len(x) != 1 for x in self._ids)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict:
    example = self._source[index]
    if 'label' not in example and self._set.of_image is None:
      raise UserError('the example has no label')
    ids = self._classes(example.get('label'), index)
    if self._is_vector:
      label = np.zeros([self.num_classes], np.float32)
      label[list(ids)] = 1
    else:
      label = int(ids[0])
    if cut := self._set.border:
      image = example['image']
      if not (isinstance(image, np.ndarray) and image.ndim):
        image = decode.decode_image(image)
      example = example | {'image': image[cut:-cut, cut:-cut]}
    return example | {'label': label}

  def describe(self, index: int) -> str:
    """Returns the words of the source."""
    return self._source.describe(index)

  def _ids_of_classes(self) -> list | None:
    """Returns the model's classes of each class; None if images have them."""
    known = self._set.of_class
    if known is None:
      return None
    names = self._source.class_names
    if names is None:
      if self._source.num_classes == self.num_classes:
        return [(i,) for i in range(self.num_classes)]
      raise UserError(
        f'labels={self._set.name!r} goes by the names of classes, and this '
        f'data has {self._source.num_classes} classes without names; give a '
        'folder with a folder for each class'
      )
    unknown = [name for name in names if name not in known]
    if unknown:
      raise UserError(
        f'labels={self._set.name!r}: {len(unknown)} of the {len(names)} classes'
        f' are not in this label set, such as {printable(unknown[0])!r}; '
        f'expected names such as {next(iter(known))!r}'
      )
    return [known[name] for name in names]

  def _classes(self, label: Any, index: int) -> Any:
    if self._ids is not None:
      return self._ids[label]
    if self._set.of_image is None:
      if np.ndim(label) != 1:
        raise UserError(
          f"the label is {label!r}; labels='real' expects lists of class ids. "
          "Give the file of labels, as in labels='real:/data/real.json'"
        )
      return np.asarray(label, np.int64)
    words = self._source.describe(index)
    number = label_sets.image_number(words)
    if number is None:
      raise UserError(
        f"{printable(words)} is no file of ImageNet's validation set; "
        'expected a name such as ILSVRC2012_val_00000001.JPEG'
      )
    return self._set.of_image[number]
