"""Evaluation batches as mmdet's detectors take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from detection.data.annotations import ListedImage
from detection.data.preprocessing import rescaled, to_pixels, to_tensor
from detection.runtime import import_mmdet
from isvit_lightning.data.loading import ImageLoader
from isvit_lightning.data.sources import ImageSource, UnreadableImageError

Sample = tuple[Tensor, Any]
"""An image ``(3, height, width)`` uint8, blue first, and its ``DetDataSample``."""

DetectorBatch = dict[str, list[Any]]
"""The argument of a detector's ``test_step``: ``inputs``, images of several sizes, and ``data_samples``."""


@dataclass(frozen=True)
class EvaluationImages(Dataset[Sample | UnreadableImageError]):
    """Some images of a source, resized for the evaluation.

    Args:
        source: the images.
        listed: number and name of each image of the source.
        indices: which of them, in order.
        scale: longest longer side and longest shorter side of a resized image, whichever binds first.
    """

    source: ImageSource
    listed: Sequence[ListedImage]
    indices: Sequence[int]
    scale: tuple[int, int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Sample | UnreadableImageError:
        """Image and what is known of it, or why there is none."""
        index = self.indices[place]
        try:
            original = to_pixels(self.source.image(index))
        except UnreadableImageError as error:
            # As a value: an exception that leaves a worker process comes with its whole traceback as its message.
            return error
        pixels = rescaled(original, self.scale)
        (height, width), (new_height, new_width) = original.shape[:2], pixels.shape[:2]
        known = {
            "img_id": self.listed[index].id,
            "img_path": self.listed[index].file,
            "ori_shape": (height, width),
            "img_shape": (new_height, new_width),
            "scale_factor": (new_width / width, new_height / height),
        }
        return to_tensor(pixels), _sample_type()(metainfo=known)


def evaluation_loader(images: EvaluationImages, batch_size: int, workers: int) -> ImageLoader:
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


def _collate(samples: list[Sample | UnreadableImageError]) -> DetectorBatch | UnreadableImageError:
    batch: DetectorBatch = {"inputs": [], "data_samples": []}
    for sample in samples:
        if isinstance(sample, UnreadableImageError):
            return sample
        batch["inputs"].append(sample[0])
        batch["data_samples"].append(sample[1])
    return batch


@cache
def _sample_type() -> Any:
    """Mmdet's ``DetDataSample``; mmdet takes seconds to import, so that a configuration is read without it."""
    import_mmdet()
    return import_module("mmdet.structures").DetDataSample
