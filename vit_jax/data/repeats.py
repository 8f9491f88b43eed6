"""Repeated augmentation: several copies of an image in one batch.

Hoffer et al. 2019 (arXiv:1901.09335), as in DeiT and timm (RASampler): the
shuffled images are repeated in place, so that a batch holds few images, each
several times with other random numbers. A pass over as many rows as there are
images sees a part of them, `1 / repeats`.
"""

import grain


class Repeated(grain.MapDataset):
  """A stream of images as rows of global batches, `repeats` rows each.

  Row j of batch t is a copy of image `(t * B + e) // repeats` of the stream,
  where e runs over 0 .. B - 1: the images of a batch, and at its two ends
  perhaps some copies only, if `repeats` does not divide B. Within the batch
  first copies stand before second copies and so on, so that B // repeats rows
  in a row are different images. (In DeiT the copies go to different processes,
  which has the same effect on what is mixed within a process.)
  """

  def __init__(self, images: grain.MapDataset, batch_size: int, repeats: int):
    super().__init__(images)
    self._batch_size = batch_size
    self._repeats = repeats

  def __len__(self) -> int:
    return len(self._parent)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, self._batch_size)
    element = batch * self._batch_size + self._element(row)
    return self._parent[element // self._repeats]

  def _element(self, row: int) -> int:
    """Returns e of a row: 0, r, 2 r, ... come first, then 1, r + 1, ..."""
    least, more = divmod(self._batch_size, self._repeats)
    if row < more * (least + 1):  # These copies have one row more than others.
      copy, image = divmod(row, least + 1)
    else:
      copy, image = divmod(row - more * (least + 1), least)
      copy += more
    return image * self._repeats + copy
