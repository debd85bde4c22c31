"""Logarithm of a shifted value, for tensors with a long tail on one side such as the output of a GELU."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from typing_extensions import override

from isvit_lightning.quantizers.formats.adalog import falling_codes, shifted
from isvit_lightning.quantizers.formats.base import Format, Grid

_LARGEST = 255
"""Integer of the largest value: all of them fit in 8 bits."""


@dataclass(frozen=True)
class ShiftedLog(Format):
    """``code = round(-log2((x + d) / s) / p)``, ``x̂ = s · round(255 · 2**(-p · code)) / 255 - d``.

    Code 0 is the largest value. ``s`` and ``d`` are such that the outermost values are the ends of the range; the ratio
    ``2**(-p · (n_codes - 1))`` of the smallest to the largest shifted value is what the range leaves open: near 1 the
    values lie at nearly equal distances, near 0 most of them crowd at the lower end. They are multiples of ``s / 255``,
    so that an engine for integers of 8 bits holds them exactly behind a lookup.
    """

    numbers: ClassVar[tuple[str, ...]] = ("scale", "step", "offset")
    fallback: ClassVar[tuple[float, ...]] = (1.0, 1.0, 0.0)
    usual_search: ClassVar[Mapping[str, Any]] = {"include_zero": False, "samples": 2**18}
    free: ClassVar[tuple[float, ...]] = tuple(2.0 ** (-k / 2) for k in range(1, 15))

    @override
    def grids(self, low: torch.Tensor, high: torch.Tensor, n_codes: int, free: tuple[float, ...]) -> Iterator[Grid]:
        # A constant tensor leaves no spread: the grid then ends in its value.
        high = torch.where(high > low, high, low + low.abs().clamp_min(1.0))
        for ratio in free:
            scale = (high - low) / (1 - ratio)
            step = torch.full_like(scale, ratio).log2_().div_(1 - n_codes)
            yield scale, step, scale - high

    @override
    def codes(self, tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
        return falling_codes(tensor, grid)

    @override
    def base(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        scale, _, _ = grid
        return self._integers(codes, grid).mul_(scale / _LARGEST)

    @override
    def shift(self, grid: Grid) -> torch.Tensor:
        return grid[2]

    @override
    def slope(self, tensor: torch.Tensor, base: torch.Tensor, grid: Grid) -> torch.Tensor:
        return base / shifted(tensor, grid[2])

    @override
    def integers(self, codes: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        return grid[0] / _LARGEST, self._integers(codes, grid)

    def _integers(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Values in units of ``scale / 255``; ``codes`` are overwritten."""
        exponents = codes.mul_(grid[1]).neg_()
        # The last bit of a power in float32 depends on its place in a tensor: a code would have two values.
        return exponents.double().exp2_().mul_(_LARGEST).round_().to(codes.dtype)
