"""A tangent compander for attention probabilities: our reading of TanQ (DopQ-ViT, arXiv 2408.03291)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from isvit_lightning.quantizers.formats.base import Format, Grid

_PARTS = 32
"""Angles that are tried, but for a right one, whose tangent is infinite."""


@dataclass(frozen=True)
class Tangent(Format):
    """``x̂ = h · tan(θ u) / tan(θ)`` with ``u = code / (n_codes - 1)``, ``h`` the largest value, for non-negative ``x``.

    Our reading of TanQ, whose formula is not published. The angle ``θ`` is what a range leaves open: close to 0 the
    grid is uniform, and the closer to a right one, the finer it is near zero; unless it is nearly right, the grid is
    finer near the largest value than a logarithm. Zero and the largest value are exact. Held are
    ``scale = h / tan(θ)`` and ``step = θ / (n_codes - 1)``, so that ``x̂ = scale · tan(step · code)``.
    """

    numbers: ClassVar[tuple[str, ...]] = ("scale", "step")
    fallback: ClassVar[tuple[float, ...]] = (1.0, 0.005)
    non_negative: ClassVar[bool] = True
    free: ClassVar[tuple[float, ...]] = tuple(math.pi / 2 * part / _PARTS for part in range(1, _PARTS))

    @override
    def grids(self, low: torch.Tensor, high: torch.Tensor, n_codes: int, free: tuple[float, ...]) -> Iterator[Grid]:
        for angle in free:
            scale = high / math.tan(angle)
            scale = torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))
            yield scale, torch.full_like(scale, angle / (n_codes - 1))

    @override
    def codes(self, tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
        scale, step = grid
        return torch.div(tensor, scale).atan_().div_(step).round_()

    @override
    def base(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        scale, step = grid
        return codes.mul_(step).tan_().mul_(scale)

    @override
    def slope(self, tensor: torch.Tensor, base: torch.Tensor, grid: Grid) -> torch.Tensor:
        # The derivative of the tangent is one more than its square.
        return (base / grid[0]).square_().add_(1).div_((tensor / grid[0]).square_().add_(1))
