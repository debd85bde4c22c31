"""Loading images in batches, in worker processes if asked to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from isvit_lightning.data.sources import ImageSource, Transform, UnreadableImageError
from isvit_lightning.errors import IsvitError, first_line

UNLABELED: Final = -1

Batch = tuple[Tensor, Tensor]
"""Images ``(n, 3, height, width)`` float32 and labels ``(n,)`` int64."""


@dataclass(frozen=True)
class ImageList(Dataset[tuple[Tensor, int] | UnreadableImageError]):
    """Some images of a source, preprocessed.

    Args:
        source: the images.
        indices: which of them, in order.
        transform: preprocessing.
        labels: class of each image of the source; None gives all the label -1.
    """

    source: ImageSource
    indices: Sequence[int]
    transform: Transform
    labels: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[Tensor, int] | UnreadableImageError:
        """Image ``(3, height, width)`` and label, or why there is none."""
        index = self.indices[place]
        try:
            label = UNLABELED if self.labels is None else self.labels[index]
            return self.source.tensor(index, self.transform), label
        except UnreadableImageError as error:
            # As a value: an exception that leaves a worker process comes with its whole traceback as its message.
            return error


class ImageLoader(DataLoader[Any]):
    """A DataLoader of an :class:`ImageList` that raises when an image cannot be read."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches.

        Raises:
            UnreadableImageError: an image cannot be read.
            IsvitError: a worker process was killed.
        """
        for batch in _while_workers_live(super().__iter__()):
            if isinstance(batch, UnreadableImageError):
                raise batch
            yield batch


def _while_workers_live(batches: Iterator[Any]) -> Iterator[Any]:
    """``batches``, with the end of a worker told in a sentence."""
    try:
        yield from batches
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise IsvitError(
            f"A process that loads images died ({first_line(error)}), expected it to live until the last image: free "
            "memory or lower data.workers, where 0 loads images in the program itself."
        ) from error


def image_loader(images: ImageList, batch_size: int, workers: int) -> ImageLoader:
    """Batches of ``images`` in order.

    Args:
        images: what to load.
        batch_size: images in a batch.
        workers: worker processes; none are started for a single batch.
    """
    return ImageLoader(
        images,
        batch_size=batch_size,
        num_workers=workers if len(images) > batch_size else 0,
        collate_fn=_collate,
    )


def _collate(samples: list[tuple[Tensor, int] | UnreadableImageError]) -> Batch | UnreadableImageError:
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, UnreadableImageError):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)
