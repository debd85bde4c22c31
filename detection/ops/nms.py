"""Non-maximum suppression with the signatures of mmcv's compiled operators."""

import torch
import torchvision
from torch import Tensor

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices ``(kept,)`` int64 of the boxes that no better one overlaps by more than the threshold, best first.

    Args:
        boxes: ``(n, 4)`` corners x1, y1, x2, y2 in pixels.
        scores: ``(n,)``.
        iou_threshold: intersection over union above which the lower score is dropped.
        offset: 1 where a corner is a pixel that belongs to the box, so that a side is ``x2 - x1 + 1``.
    """
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes, scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int = 0,
) -> Tensor:
    """Lower the scores of overlapping boxes instead of dropping them (Soft-NMS, arXiv 1704.04503).

    Args:
        boxes: ``(n, 4)`` corners x1, y1, x2, y2 in pixels.
        scores: ``(n,)``.
        dets: ``(n, 5)``, receives corners and lowered score of the kept boxes in its first rows, best first.
        iou_threshold: overlap from which the naive and the linear method act.
        sigma: width of the Gaussian method.
        min_score: lowered score below which a box is dropped.
        method: 0 drops, 1 multiplies by ``1 - IoU``, 2 by ``exp(-IoU² / sigma)``.
        offset: as for :func:`nms`.

    Returns:
        Indices ``(kept,)`` int64.
    """
    left = torch.arange(len(boxes))
    scores = scores.clone()
    sized = boxes + boxes.new_tensor([0, 0, offset, offset])
    kept: list[int] = []
    while len(left):
        best = int(left[scores[left].argmax()])
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], scores[best]
        kept.append(best)
        left = left[left != best]
        iou = torchvision.ops.box_iou(sized[best : best + 1], sized[left])[0]
        scores[left] *= _decay(iou, method, iou_threshold, sigma)
        left = left[scores[left] >= min_score]
    return torch.tensor(kept, dtype=torch.int64)


def _decay(iou: Tensor, method: int, iou_threshold: float, sigma: float) -> Tensor:
    if method == GAUSSIAN:
        return torch.exp(-iou.square() / sigma)
    lowered = 1 - iou if method == LINEAR else torch.zeros_like(iou)
    return torch.where(iou >= iou_threshold, lowered, torch.ones_like(iou))
