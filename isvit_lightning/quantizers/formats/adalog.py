"""Logarithm with an adaptive base (AdaLog, arXiv 2407.12951)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers.formats.base import Format, Grid

_PARTS = 37
"""``r`` of the paper: bases are powers ``2**(q / r)`` with whole ``q``."""


@dataclass(frozen=True)
class AdaLog(Format):
    """``code = clamp(round(-log2((x + d) / s) / p), 0, n_codes - 1)``, ``x̂ = s · 2**(-p · code) - d``.

    ``p = q / 37`` is the number that a range leaves open; whole ``q`` from 10 to 138 keep the integer form of a shift
    and a short table. Code 0 is the largest value. The table of values is strict: no code is spent on zero alone.

    Args:
        shift_by: ``d``, which makes values non-negative; behind a GELU, whose smallest value is its negative,
            0.16997124.

    Raises:
        IsvitError: a negative shift.
    """

    numbers: ClassVar[tuple[str, ...]] = ("scale", "step", "offset")
    fallback: ClassVar[tuple[float, ...]] = (1.0, 1.0, 0.0)
    free: ClassVar[tuple[float, ...]] = tuple(q / _PARTS for q in range(10, 139))

    shift_by: float = 0.0

    def __post_init__(self) -> None:
        if self.shift_by < 0:
            raise IsvitError(
                f"AdaLog has shift_by {self.shift_by}, expected 0 or more: change it under model.recipe.placement."
            )

    @override
    def grids(self, low: torch.Tensor, high: torch.Tensor, n_codes: int, free: tuple[float, ...]) -> Iterator[Grid]:
        scale = high + self.shift_by
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        for step in free:
            yield scale, torch.full_like(scale, step), torch.full_like(scale, self.shift_by)

    @override
    def codes(self, tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
        return falling_codes(tensor, grid)

    @override
    def base(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        scale, step, _ = grid
        return codes.mul_(step).neg_().exp2_().mul_(scale)

    @override
    def shift(self, grid: Grid) -> torch.Tensor | None:
        return grid[2] if self.shift_by else None

    @override
    def slope(self, tensor: torch.Tensor, base: torch.Tensor, grid: Grid) -> torch.Tensor:
        return base / shifted(tensor, grid[2])


def falling_codes(tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Codes on a grid of scale ``s``, step ``p`` and offset ``d``: ``round(-log2((x + d) / s) / p)``, a new tensor."""
    scale, step, offset = grid
    return shifted(tensor, offset).div_(scale).log2_().neg_().div_(step).round_()


def shifted(tensor: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """``x + d`` as a new tensor, kept above zero: what lies below gets the last code."""
    return torch.add(tensor, offset).clamp_min_(torch.finfo(tensor.dtype).tiny)
