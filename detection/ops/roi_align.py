"""Region-of-interest alignment with the signatures of mmcv's compiled operators."""

import torch
import torchvision
from torch import Tensor

from isvit_lightning.errors import IsvitError

_MAX, _AVERAGE = 0, 1


def roi_align_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,  # noqa: ARG001 - the compiled operator's signature
    argmax_x: Tensor,  # noqa: ARG001
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``output`` with the average of bilinear samples in each cell of each box.

    Args:
        features: ``(batch, channels, height, width)``.
        rois: ``(n, 5)``: index of the image, then x1, y1, x2, y2 in pixels of the image.
        output: ``(n, channels, aligned_height, aligned_width)``, written to.
        argmax_y: not used; the maximum needs it.
        argmax_x: not used; the maximum needs it.
        aligned_height: cells from top to bottom.
        aligned_width: cells from left to right.
        spatial_scale: size of a pixel of the image in pixels of the features.
        sampling_ratio: samples per cell and axis; 0 chooses by the size of the box.
        pool_mode: 1 averages.
        aligned: count half a pixel between a coordinate and the centre of its pixel.

    Raises:
        IsvitError: the maximum is asked for.
    """
    _require_average(pool_mode)
    size = (aligned_height, aligned_width)
    output.copy_(torchvision.ops.roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,  # noqa: ARG001 - the compiled operator's signature
    argmax_x: Tensor,  # noqa: ARG001
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``grad_input (batch, channels, height, width)`` with the gradient by the features.

    Args:
        grad_output: ``(n, channels, aligned_height, aligned_width)``.
        rois: as for :func:`roi_align_forward`, as are all others.
        argmax_y: not used.
        argmax_x: not used.
        grad_input: written to.
        aligned_height: cells from top to bottom.
        aligned_width: cells from left to right.
        spatial_scale: size of a pixel of the image in pixels of the features.
        sampling_ratio: samples per cell and axis.
        pool_mode: 1 averages.
        aligned: as for :func:`roi_align_forward`.

    Raises:
        IsvitError: the maximum is asked for.
    """
    _require_average(pool_mode)
    size = (aligned_height, aligned_width)
    with torch.enable_grad():
        # The average is linear in the features, so that any features have this gradient.
        features = torch.zeros_like(grad_input, requires_grad=True)
        pooled = torchvision.ops.roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned)
        (gradient,) = torch.autograd.grad(pooled, features, grad_output)
    grad_input.copy_(gradient)


def _require_average(pool_mode: int) -> None:
    if pool_mode != _AVERAGE:
        raise IsvitError(
            "The detector pools boxes by their maximum (roi_align with pool_mode max), expected avg, which is what "
            "mmcv-lite can be helped out with: install the full mmcv in its place, or change roi_layer."
        )
