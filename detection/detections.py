"""What a detector found on an image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as run_lengths
from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """Objects found on one image, in its own pixels. It lies on the CPU, so that processes can exchange it.

    Args:
        image_id: number of the image in the annotations.
        boxes: ``(n, 4)`` float32: left, top, right and bottom edge.
        scores: ``(n,)`` float32 in [0, 1].
        labels: ``(n,)`` int64, places in the detector's classes.
        masks: the mask of each object as COCO's compressed run lengths; None where the detector finds boxes only.
    """

    image_id: int
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: tuple[dict[str, Any], ...] | None = None

    @classmethod
    def of(cls, sample: Any) -> "Detections":
        """What mmdet predicts for an image.

        Args:
            sample: a ``DetDataSample`` with ``img_id`` and ``pred_instances``, whose masks are ``(n, height, width)``.
        """
        found = sample.pred_instances
        masks = encode_masks(found.masks) if "masks" in found else None
        boxes, scores, labels = (value.detach().cpu() for value in (found.bboxes, found.scores, found.labels))
        return cls(int(sample.img_id), boxes.float(), scores.float(), labels.long(), masks)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: object) -> "Detections":
        """The same object: it stays on the CPU, though Lightning moves whatever is predicted."""
        return self

    def mask(self, place: int) -> Tensor | None:
        """Pixels ``(height, width)`` bool of one object; None without masks."""
        return None if self.masks is None else torch.from_numpy(run_lengths.decode(self.masks[place])).bool()


def encode_masks(masks: Tensor) -> tuple[dict[str, Any], ...]:
    """Masks ``(n, height, width)`` bool as COCO's compressed run lengths."""
    pixels = masks.detach().cpu().numpy().astype(np.uint8)
    return tuple(run_lengths.encode(np.asfortranarray(mask)) for mask in pixels)
