import math

import pytest
import torch
from torch import Tensor

from detection.ops import nms, softnms
from detection.ops.nms import GAUSSIAN, LINEAR, NAIVE


def random_boxes(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 2 + torch.rand(count, 2, generator=generator) * 15], dim=1)
    return boxes, torch.rand(count, generator=generator)


def slow_iou(a: list[float], b: list[float], offset: int) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def slow_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    rows, kept = boxes.tolist(), []
    for index in sorted(range(len(rows)), key=lambda index: -float(scores[index])):
        if all(slow_iou(rows[index], rows[other], offset) <= threshold for other in kept):
            kept.append(index)
    return kept


def slow_softnms(
    boxes: Tensor, scores: Tensor, threshold: float, sigma: float, least: float, method: int, offset: int
) -> list[tuple[int, float]]:
    rows, kept = boxes.tolist(), []
    left = dict(enumerate(scores.tolist()))
    while left:
        best = max(left, key=lambda index: left[index])
        kept.append((best, left.pop(best)))
        for index in list(left):
            iou = slow_iou(rows[best], rows[index], offset)
            if method == GAUSSIAN:
                left[index] *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                left[index] *= 1 - iou if method == LINEAR else 0
            if left[index] < least:
                del left[index]
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_nms_keeps_what_a_loop_keeps(threshold: float, offset: int) -> None:
    boxes, scores = random_boxes(60)
    kept = nms(boxes, scores, iou_threshold=threshold, offset=offset)
    assert kept.tolist() == slow_nms(boxes, scores, threshold, offset)


def test_the_offset_matters() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 1, 1, 2]])
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.3, offset=0).tolist() == [0, 1]
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.3, offset=1).tolist() == [0]


def test_nms_of_no_boxes() -> None:
    kept = nms(torch.empty(0, 4), torch.empty(0), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", [NAIVE, LINEAR, GAUSSIAN])
def test_softnms_lowers_scores_as_a_loop_does(method: int, offset: int) -> None:
    boxes, scores = random_boxes(40, seed=1)
    dets = torch.full((40, 5), torch.nan)
    kept = softnms(boxes, scores, dets, 0.3, 0.5, 0.05, method, offset)
    expected = slow_softnms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert 5 < len(expected) < 40
    assert kept.tolist() == [index for index, _ in expected]
    assert torch.equal(dets[: len(kept), :4], boxes[kept])
    torch.testing.assert_close(dets[: len(kept), 4], torch.tensor([score for _, score in expected]))


def test_softnms_leaves_the_given_scores_alone() -> None:
    boxes, scores = random_boxes(10)
    before = scores.clone()
    softnms(boxes, scores, torch.empty(10, 5), 0.3, 0.5, 0.0, LINEAR)
    assert torch.equal(scores, before)


def test_softnms_of_no_boxes() -> None:
    assert softnms(torch.empty(0, 4), torch.empty(0), torch.empty(0, 5), 0.3, 0.5, 0.0, LINEAR).shape == (0,)
