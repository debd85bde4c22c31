import math

import pytest
import torch
from torch import Tensor

from detection.ops import roi_align_backward, roi_align_forward
from isvit_lightning.errors import IsvitError

AVERAGE, MAXIMUM = 1, 0
# Inside, across the border, of no size, beyond every pixel; the last of the second image.
ROIS = torch.tensor(
    [[0.0, 2, 3, 13, 11], [0, -3, -2, 9, 9], [0, 5, 5, 5, 5], [0, 60, 60, 70, 70], [1, 1.3, 2.7, 14.9, 15.2]]
)


def bilinear(plane: Tensor, y: float, x: float) -> Tensor:
    """Value between four pixels; the border pixel up to one pixel outside, zero beyond."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(())
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = plane[top, left] * (1 - dx) + plane[top, right] * dx
    lower = plane[bottom, left] * (1 - dx) + plane[bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def slow_cell(
    plane: Tensor, box: tuple[float, ...], size: tuple[int, int], cell: tuple[int, int], ratio: int
) -> Tensor:
    left, top, width, height = box
    cell_height, cell_width = height / size[0], width / size[1]
    rows, columns = (ratio, ratio) if ratio else (math.ceil(cell_height), math.ceil(cell_width))
    samples = [
        bilinear(
            plane,
            top + (cell[0] + (row + 0.5) / rows) * cell_height,
            left + (cell[1] + (column + 0.5) / columns) * cell_width,
        )
        for row in range(rows)
        for column in range(columns)
    ]
    return torch.stack(samples).mean() if samples else plane.new_zeros(())


def slow_roi_align(
    features: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    results = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0) for corner in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:  # the older definition gives every box a pixel at least
            width, height = max(width, 1.0), max(height, 1.0)
        results += [
            slow_cell(plane, (x1, y1, width, height), size, (row, column), ratio)
            for plane in features[int(image)]
            for row in range(size[0])
            for column in range(size[1])
        ]
    return torch.stack(results).view(len(rois), features.shape[1], *size)


def fast_roi_align(
    features: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    output = features.new_full((len(rois), features.shape[1], *size), torch.nan)
    unused = features.new_zeros(0)
    roi_align_forward(features, rois, output, unused, unused, *size, scale, ratio, AVERAGE, aligned)
    return output


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_forward_averages_bilinear_samples(scale: float, ratio: int, aligned: bool) -> None:
    features = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    rois = ROIS.double()
    fast = fast_roi_align(features, rois, (3, 2), scale, ratio, aligned)
    torch.testing.assert_close(fast, slow_roi_align(features, rois, (3, 2), scale, ratio, aligned))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_backward_is_the_gradient_of_the_slow_form(ratio: int, aligned: bool) -> None:
    features = torch.randn(2, 2, 9, 10, dtype=torch.float64, requires_grad=True)
    rois = ROIS.double()
    pooled = slow_roi_align(features, rois, (2, 3), 0.5, ratio, aligned)
    gradient = torch.randn_like(pooled)
    (expected,) = torch.autograd.grad(pooled, features, gradient)
    found = torch.full_like(features, torch.nan)
    unused = features.new_zeros(0)
    with torch.no_grad():
        roi_align_backward(gradient, rois, unused, unused, found, 2, 3, 0.5, ratio, AVERAGE, aligned)
    torch.testing.assert_close(found, expected)


def test_no_boxes() -> None:
    features, none = torch.randn(1, 2, 8, 8), torch.empty(0, 5)
    assert fast_roi_align(features, none, (3, 3), 1.0, 2, True).shape == (0, 2, 3, 3)
    gradient, unused = torch.full_like(features, torch.nan), features.new_zeros(0)
    roi_align_backward(torch.empty(0, 2, 3, 3), none, unused, unused, gradient, 3, 3, 1.0, 2, AVERAGE, True)
    assert torch.equal(gradient, torch.zeros_like(features))


def test_the_maximum_is_refused_by_name() -> None:
    features, unused = torch.randn(1, 2, 8, 8), torch.zeros(0)
    output = torch.empty(5, 2, 3, 3)
    with pytest.raises(IsvitError, match="pool_mode max.*install the full mmcv"):
        roi_align_forward(features, ROIS, output, unused, unused, 3, 3, 1.0, 2, MAXIMUM, True)
    with pytest.raises(IsvitError, match="pool_mode max"):
        roi_align_backward(output, ROIS, unused, unused, features, 3, 3, 1.0, 2, MAXIMUM, True)
