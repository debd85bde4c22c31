"""SULQ, the shift-uniform-log2 format for attention probabilities (I&S-ViT, arXiv 2311.10126, eq. 13-14)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers.formats.base import Format, Grid

POWER_OF_TWO_ETAS = tuple(2.0**-k for k in range(21))
"""Shifts with an exact zero: ``2**e - eta`` vanishes where ``e = log2(eta)``."""
_WHOLE_EXPONENTS_UP_TO = 4
"""Bits whose codes lie about an octave apart, so that whole exponents waste few of them."""
_FINE = 256
"""Steps per octave that tell the codes of 8 bits apart even within one octave."""


@dataclass(frozen=True)
class Sulq(Format):
    """Quantizes ``log2(x + eta)`` uniformly and rounds the exponent, so that a grid value is a shift minus ``eta``.

    ``eta`` is the number that a range leaves open, ``offset`` the smallest ``log2(x + eta)`` and ``step`` the distance
    of neighbouring codes in ``log2``. Code 0 is the smallest value. Whole exponents, as published, give at most 21
    values between 0 and 1: codes of 6 or 8 bits would share them. With finer ones every code has a value, and the
    search finds grids between a logarithmic and, at ``eta`` of 1, a nearly uniform one.

    Args:
        extra_codes: codes beyond ``2**bits``; 1 reproduces the published code, which chooses the shift with ``2**bits``
            codes and spends one more.
        steps_per_octave: exponents are multiples of ``1 / steps_per_octave``, up to 256; 1 as published, null for 1
            up to 4 bits and 256 above.

    Raises:
        IsvitError: another number of extra codes, or of steps per octave.
    """

    numbers: ClassVar[tuple[str, ...]] = ("eta", "offset", "step")
    fallback: ClassVar[tuple[float, ...]] = (1.0, 0.0, 1.0)
    non_negative: ClassVar[bool] = True
    # The shift decides where zero lies.
    usual_search: ClassVar[Mapping[str, Any]] = {"percentiles": (1.0,), "include_zero": False, "samples": 2**20}
    free: ClassVar[tuple[float, ...]] = POWER_OF_TWO_ETAS

    extra_codes: int = 0
    steps_per_octave: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.extra_codes <= 1:
            raise IsvitError(
                f"SULQ has extra_codes {self.extra_codes}, expected 0 or 1: change it under model.recipe.placement."
            )
        if self.steps_per_octave is not None and not 1 <= self.steps_per_octave <= _FINE:
            raise IsvitError(
                f"SULQ has steps_per_octave {self.steps_per_octave}, expected 1 to {_FINE}: change it under "
                "model.recipe.placement."
            )

    @override
    def at(self, bits: int) -> "Sulq":
        steps = self.steps_per_octave or (1 if bits <= _WHOLE_EXPONENTS_UP_TO else _FINE)
        return replace(self, steps_per_octave=steps)

    @override
    def n_codes(self, bits: int) -> int:
        return int(2**bits) + self.extra_codes

    @override
    def grids(self, low: torch.Tensor, high: torch.Tensor, n_codes: int, free: tuple[float, ...]) -> Iterator[Grid]:
        for candidate in free:
            eta = torch.full_like(low, candidate)
            offset = torch.log2(low + eta)
            spread = torch.log2(high + eta) - offset
            # A constant tensor leaves no spread: any step represents it, 1 keeps the grid finite.
            spread = torch.where(spread > 0, spread, torch.full_like(spread, n_codes - 1.0))
            yield eta, offset, spread / (n_codes - 1)

    @override
    def searched(self, grid: Grid, n_codes: int) -> tuple[Grid, int]:
        if not self.extra_codes:
            return grid, n_codes
        eta, offset, step = grid
        fewer = n_codes - self.extra_codes
        return (eta, offset, step * (n_codes - 1) / (fewer - 1)), fewer

    @override
    def codes(self, tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
        eta, offset, step = grid
        return torch.add(tensor, eta).log2_().sub_(offset).div_(step).round_()

    @override
    def base(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        exponents = self._exponents(codes, grid)
        if self._steps == 1:
            return exponents.exp2_()
        # The last bit of a power with a fraction depends on its place in a tensor: a code would have two values.
        return exponents.double().exp2_().to(exponents.dtype)

    @override
    def shift(self, grid: Grid) -> torch.Tensor:
        return grid[0]

    @override
    def slope(self, tensor: torch.Tensor, base: torch.Tensor, grid: Grid) -> torch.Tensor:
        slope = torch.add(tensor, grid[0])
        return torch.div(base, slope, out=slope)

    @override
    def exponents(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor | None:
        return self._exponents(codes, grid) if self._steps == 1 else None

    @property
    def _steps(self) -> int:
        """Steps per octave; 1 before a width is known."""
        return self.steps_per_octave or 1

    def _exponents(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Logarithms of :meth:`base`; ``codes`` are overwritten."""
        _, offset, step = grid
        exponents = codes.mul_(step).add_(offset)
        return exponents.round_() if self._steps == 1 else exponents.mul_(self._steps).round_().div_(self._steps)
