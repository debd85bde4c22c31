"""Two uniform ranges side by side, one with fine steps and one with coarse ones (PTQ4ViT, arXiv 2111.12293)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from isvit_lightning.quantizers.formats.base import Format, Grid


@dataclass(frozen=True)
class TwinUniform(Format):
    """``x̂ = p + (code - m) · s`` with the fine step ``s`` below ``p`` and the coarse one from ``p`` on.

    The first bit of a code tells its range. The coarse step is ``2**k`` fine ones, so that a shift aligns the two; a
    range leaves ``k`` open, 0 to 19 (PTQ4ViT, twin uniform quantization). Without a sign, ``p = m · s`` ends the fine
    range: zero and the largest value are exact, and values below zero get the first code. The published ranges both
    begin at zero, so that some values of the coarse one are those of the fine one; here each code has a value of its
    own.

    Args:
        signed: fine steps are for negative values, ``p = 0``, as behind a GELU; else for small ones, as of attention
            probabilities.
    """

    numbers: ClassVar[tuple[str, ...]] = ("fine", "coarse", "middle")
    fallback: ClassVar[tuple[float, ...]] = (1.0, 1.0, 0.0)
    free: ClassVar[tuple[float, ...]] = tuple(float(k) for k in range(20))

    signed: bool = False

    @override
    def grids(self, low: torch.Tensor, high: torch.Tensor, n_codes: int, free: tuple[float, ...]) -> Iterator[Grid]:
        middle = n_codes // 2 if self.signed else n_codes // 2 - 1
        above = n_codes - 1 - middle
        for octaves in free:
            ratio = 2.0**octaves
            if self.signed:
                fine = torch.where(high > 0, high / (above * ratio), -low / middle)
            else:
                fine = high / (middle + above * ratio)
            fine = torch.where(fine > torch.finfo(fine.dtype).tiny, fine, torch.ones_like(fine))
            yield fine, fine * ratio, torch.full_like(fine, middle)

    @override
    def codes(self, tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
        distance = tensor - self._split(grid)
        return distance.div_(_step(distance, grid)).round_().add_(grid[2])

    @override
    def base(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        steps = codes.sub_(grid[2])
        return steps.mul_(_step(steps, grid)).add_(self._split(grid))

    @override
    def slope(self, tensor: torch.Tensor, base: torch.Tensor, grid: Grid) -> torch.Tensor:
        return torch.ones_like(tensor)

    def _split(self, grid: Grid) -> torch.Tensor:
        """``p``, where the ranges meet."""
        fine, _, middle = grid
        return torch.zeros_like(fine) if self.signed else fine * middle


def _step(distance: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Step at each place, by its distance from where the ranges meet."""
    return torch.where(distance < 0, grid[0], grid[1])
