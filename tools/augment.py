"""Light augmentation of digits: every image is shifted, rotated and scaled a little."""

import math
from dataclasses import dataclass

import torch
from torch import nn

BACKGROUND = -1.0
"""Value of an empty pixel after normalisation."""


@dataclass(frozen=True)
class Augmentation:
    """Largest distortion in either direction; each image draws its own, uniformly.

    Args:
        degrees: rotation.
        shift: shift along each axis, as a share of the image's side.
        scale: change of size, as a share of it.
    """

    degrees: float = 12.0
    shift: float = 0.08
    scale: float = 0.12


def augment(images: torch.Tensor, choice: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Distort each image on its own.

    Args:
        images: normalised images ``(n, channels, height, width)``.
        choice: how far.
        generator: source of the distortions, on the CPU.

    Returns:
        Images of the same shape; what comes in from outside is background.
    """
    draw = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle = draw[0] * math.radians(choice.degrees)
    zoom = 1 + draw[1] * choice.scale
    # Affine grids span [-1, 1], two sides' worth, hence the factor.
    shift_x, shift_y = 2 * choice.shift * draw[2], 2 * choice.shift * draw[3]
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack([torch.stack([cos, -sin, shift_x], -1), torch.stack([sin, cos, shift_y], -1)], 1)
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    # Sampling pads with zeros, so zero has to mean background meanwhile.
    return nn.functional.grid_sample(images - BACKGROUND, grid, mode="bilinear", align_corners=False) + BACKGROUND
