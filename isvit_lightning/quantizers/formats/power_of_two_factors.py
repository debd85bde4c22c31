"""One uniform grid whose step each channel takes once, twice, four or eight times (FQ-ViT, arXiv 2111.13824)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from isvit_lightning.quantizers.formats.base import Format, Grid
from isvit_lightning.quantizers.formats.uniform import Uniform

_MOST = 3
"""Largest exponent of the paper."""


@dataclass(frozen=True)
class PowerOfTwoFactors(Format):
    """``x̂ = s · 2**k · (clamp(round(x / (s · 2**k)) + z, 0, n_codes - 1) - z)``, FQ-ViT's factors.

    ``s`` and ``z`` are the same in all channels; the exponent ``k``, 0 to 3, is each channel's own and what a range
    leaves open. With 3 a channel has the range of all channels together. An integer norm shifts codes by ``k``.
    """

    numbers: ClassVar[tuple[str, ...]] = ("scale", "zero_point", "exponent")
    fallback: ClassVar[tuple[float, ...]] = (1.0, 0.0, 0.0)
    free: ClassVar[tuple[float, ...]] = tuple(float(k) for k in range(_MOST + 1))

    @override
    def grids(self, low: torch.Tensor, high: torch.Tensor, n_codes: int, free: tuple[float, ...]) -> Iterator[Grid]:
        lowest, highest = low.amin().expand_as(low), high.amax().expand_as(high)
        for scale, zero_point in Uniform().grids(lowest, highest, n_codes, (0.0,)):
            for exponent in free:
                yield scale / 2**_MOST, zero_point, torch.full_like(scale, exponent)

    @override
    def codes(self, tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
        return torch.div(tensor, _step(grid)).round_().add_(grid[1])

    @override
    def base(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        return codes.sub_(grid[1]).mul_(_step(grid))

    @override
    def slope(self, tensor: torch.Tensor, base: torch.Tensor, grid: Grid) -> torch.Tensor:
        return torch.ones_like(tensor)

    @override
    def affine(self, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        return _step(grid), grid[1]


def _step(grid: Grid) -> torch.Tensor:
    """Distance of neighbouring values, channel by channel; exact, as is every power of two."""
    scale, _, exponent = grid
    return scale * exponent.exp2()
