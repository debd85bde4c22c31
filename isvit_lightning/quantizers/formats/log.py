"""Logarithmic formats: log2 (I&S-ViT eq. 10-11) and log-sqrt2 (RepQ-ViT, arXiv 2212.08254, eq. 13)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers.formats.base import Format, Grid


@dataclass(frozen=True)
class Log(Format):
    """``code = clamp(round(-k · log2(x / s)), 0, n_codes - 1)``, ``x̂ = s · 2**(-code / k)`` for non-negative ``x``.

    Code 0 is the largest value. Zero takes the last code, whose value is ``s · 2**(-(n_codes - 1) / k)``.

    Args:
        steps_per_octave: ``k``: 1 is log2, 2 is log-sqrt2.

    Raises:
        IsvitError: fewer than one step per octave.
    """

    numbers: ClassVar[tuple[str, ...]] = ("scale",)
    fallback: ClassVar[tuple[float, ...]] = (1.0,)
    non_negative: ClassVar[bool] = True
    usual_search: ClassVar[Mapping[str, Any]] = {"interpolate": False}

    steps_per_octave: int = 1

    def __post_init__(self) -> None:
        if self.steps_per_octave < 1:
            raise IsvitError(
                f"The log format has steps_per_octave {self.steps_per_octave}, expected 1 or more: change it under "
                "model.recipe.placement."
            )

    @override
    def grids(self, low: torch.Tensor, high: torch.Tensor, n_codes: int, free: tuple[float, ...]) -> Iterator[Grid]:
        yield (torch.where(high > 0, high, torch.ones_like(high)),)

    @override
    def codes(self, tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
        return torch.div(tensor, grid[0]).log2_().mul_(-self.steps_per_octave).round_()

    @override
    def base(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        return codes.div_(-self.steps_per_octave).exp2_().mul_(grid[0])

    @override
    def slope(self, tensor: torch.Tensor, base: torch.Tensor, grid: Grid) -> torch.Tensor:
        return base / tensor
