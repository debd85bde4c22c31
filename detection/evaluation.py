"""Average precision of a detector, by COCO's own definition and code."""

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from detection.data.annotations import GroundTruth
from detection.data.loading import DetectorBatch
from detection.data.segmentations import Size
from detection.detections import Detections
from isvit_lightning.errors import IsvitError

Kind = Literal["bbox", "segm"]

_NAMES: Final[dict[Kind, str]] = {"bbox": "box", "segm": "mask"}


def average_precision(found: Iterable[Detections], truth: GroundTruth) -> dict[str, float]:
    """COCO's AP and AP50 in per cent, over at most 100 objects per image.

    Args:
        found: detections of each evaluated image, of every image once.
        truth: what is on the images.

    Returns:
        ``box_ap`` and ``box_ap50``; where the detector finds masks and the annotations have some, ``mask_ap`` and
        ``mask_ap50`` too: an object without a mask is neither found nor missed in these, nor is a mask in its box
        wrong. A detector that finds nothing has 0.

    Raises:
        IsvitError: the detector has more classes than the ground truth.
    """
    everything = list(found)
    highest = max((int(detections.labels.max()) for detections in everything if len(detections)), default=0)
    if highest >= len(truth.class_names):
        raise IsvitError(
            f"The detector found an object of its class {highest}, counted from 0, but the annotations have "
            f"{len(truth.class_names)} classes, expected as many as the detector has: change "
            "data.evaluation_annotations, data.classes or the checkpoint."
        )
    kinds: list[Kind] = ["bbox"]
    masked = any("segmentation" in each and not each["iscrowd"] for each in truth.dataset["annotations"])
    if masked and all(detections.masks is not None for detections in everything):
        kinds.append("segm")
    metrics: dict[str, float] = {}
    for kind in kinds:
        precision = _precision(everything, truth, kind)
        metrics[f"{_NAMES[kind]}_ap"] = _mean(precision)
        metrics[f"{_NAMES[kind]}_ap50"] = _mean(precision[:1])  # the thresholds rise from 0.5
    return metrics


class DetectionEvaluator(LightningModule):
    """Measures AP of a detector and lists its detections, each image once on however many processes.

    Args:
        network: mmdet detector, float or quantized.
        truth: what is on the images; None lists detections only.
    """

    def __init__(self, network: nn.Module, truth: GroundTruth | None = None) -> None:
        super().__init__()
        self.network: Any = network
        self.truth = truth
        self._found: list[Detections] = []

    def on_test_start(self) -> None:
        """Forget an earlier run, and move the detector as mmdet wants it."""
        self._found = []
        self._place()

    def on_predict_start(self) -> None:
        """Move the detector as mmdet wants it."""
        self._place()

    def test_step(self, batch: DetectorBatch, index: int) -> None:
        """Keep the detections of a batch."""
        self._found += self.predict_step(batch, index)

    def predict_step(self, batch: DetectorBatch, index: int) -> list[Detections]:
        """Detections of each image of a batch."""
        return [Detections.of(sample) for sample in self.network.test_step(batch)]

    def on_test_epoch_end(self) -> None:
        """Gather the detections of all processes, measure them on the first and tell all the result.

        Raises:
            IsvitError: an image was left out, so that its objects would count as not found.
        """
        if self.truth is None:
            raise RuntimeError("a detector is tested against a ground truth")
        everything = _gathered(self._found)
        missing = set(self.truth.image_ids) - {detections.image_id for detections in everything}
        if missing:
            raise IsvitError(
                f"{len(missing)} of {len(self.truth.image_ids)} evaluation images were left out, expected all to be "
                "measured: choose fewer with data.evaluation_images, and leave trainer.limit_test_batches and "
                "trainer.use_distributed_sampler as they are."
            )
        metrics = average_precision(everything, self.truth) if self.trainer.is_global_zero else {}
        metrics = self.trainer.strategy.broadcast(metrics)
        self.log_dict(metrics)
        self._found = []

    def _place(self) -> None:
        # mmdet's data preprocessor learns its device from `to` alone, which Lightning calls on the outer module only.
        self.network.to(self.device)


def _gathered(mine: Sequence[Detections]) -> list[Detections]:
    """Detections of all processes, those of each image once."""
    parts: list[Any] = [mine]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, mine)
    # A sampler that pads hands some images to two processes.
    return list({detections.image_id: detections for part in parts for detections in part}.values())


def _precision(found: Sequence[Detections], truth: GroundTruth, kind: Kind) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Precision by threshold, recall and class; -1 where a class has no object."""
    results = [entry for detections in found for entry in _entries(detections, truth, kind)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        annotated = _indexed({**truth.dataset, "annotations": _judged(truth, kind)})
        # loadRes fails on an empty list.
        detected = annotated.loadRes(results) if results else _indexed({**truth.dataset, "annotations": []})
        evaluation = COCOeval(annotated, detected, kind)
        evaluation.params.imgIds = truth.image_ids
        evaluation.params.catIds = list(truth.category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    # Of all sizes, and of the largest number of objects per image.
    precision: np.ndarray[Any, np.dtype[np.float64]] = evaluation.eval["precision"][..., 0, -1]
    return precision


def _judged(truth: GroundTruth, kind: Kind) -> list[dict[str, Any]]:
    """Copies of the annotations, because pycocotools writes into them; a box is a crowd's where its mask is missing."""
    if kind == "bbox":
        return [dict(each) for each in truth.dataset["annotations"]]
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.dataset["images"]}
    regions = (
        {} if "segmentation" in each else {"iscrowd": 1, "segmentation": _region(each["bbox"], sizes[each["image_id"]])}
        for each in truth.dataset["annotations"]
    )
    return [{**each, **region} for each, region in zip(truth.dataset["annotations"], regions, strict=True)]


def _region(box: Sequence[float], size: Size) -> dict[str, Any]:
    """The pixels of a box that lie on a picture of ``size``."""
    (left, top, width, height), (down, across) = box, size
    right, bottom = min(left + width, across), min(top + height, down)
    left, top = max(left, 0), max(top, 0)
    drawn: list[dict[str, Any]] = run_lengths.frPyObjects(
        np.array([[left, top, right - left, bottom - top]], dtype=np.float64), down, across
    )
    return drawn[0]


def _indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = {"info": {}, **dataset}  # loadRes copies it
    coco.createIndex()
    return coco


def _entries(detections: Detections, truth: GroundTruth, kind: Kind) -> Iterable[dict[str, Any]]:
    """Detections of an image in COCO's format of results."""
    boxes, scores, labels = (value.tolist() for value in (detections.boxes, detections.scores, detections.labels))
    for place, (left, top, right, bottom) in enumerate(boxes):
        entry = {
            "image_id": detections.image_id,
            "category_id": truth.category_ids[labels[place]],
            "score": scores[place],
        }
        if kind == "bbox":
            yield {**entry, "bbox": [left, top, right - left, bottom - top]}
        elif detections.masks is not None:
            yield {**entry, "segmentation": detections.masks[place]}


def _mean(precision: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Mean over the classes that have an object, in per cent."""
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else 0.0
