"""What a number format is: pure functions from tensors to codes and back."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch

from isvit_lightning.quantizers.granularity import Granularity

Grid = tuple[torch.Tensor, ...]
"""The numbers of a grid in the order of :attr:`Format.numbers`; each broadcasts against the quantized tensor."""


class Format(ABC):
    """A number format: which grids of ``n_codes`` values there are, and which code a value gets.

    Subclasses are frozen dataclasses of plain values. A grid value is ``base(code) - shift``. The rest of a quantizer
    (its buffers, the choice of a grid, gradients) is the same for all formats.
    """

    numbers: ClassVar[tuple[str, ...]]
    """Names of the numbers that make a grid; they are buffers of a quantizer."""
    dynamic: ClassVar[bool] = False
    """Whether a grid is chosen anew for each tensor that is quantized at run time, instead of once for all."""
    fallback: ClassVar[tuple[float, ...]]
    """Values of the numbers where no grid for the samples can be computed with, such as near the end of float32."""
    non_negative: ClassVar[bool] = False
    """Whether the format holds no negative values."""
    usual_search: ClassVar[Mapping[str, Any]] = {}
    """How a range is usually searched for the format: fields of a search by percentiles, where not its defaults."""
    free: ClassVar[tuple[float, ...]] = (0.0,)
    """Values that a search tries for the number that a range leaves open; a single one where none is."""

    def at(self, bits: int) -> "Format":
        """The format with everything set that depends on the width of its codes."""
        return self

    def n_codes(self, bits: int) -> int:
        """Number of codes: ``2**bits``, except where a published method that spends more is reproduced."""
        return int(2**bits)

    @abstractmethod
    def grids(self, low: torch.Tensor, high: torch.Tensor, n_codes: int, free: tuple[float, ...]) -> Iterator[Grid]:
        """The grids that a search compares for one range.

        Args:
            low: lower end of the range of each group, ``(groups, 1)``.
            high: upper end, same shape.
            n_codes: number of codes.
            free: values to try for what the range leaves open.
        """

    @abstractmethod
    def codes(self, tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Code of each value as a new float tensor of whole numbers, not yet kept within ``[0, n_codes)``."""

    @abstractmethod
    def base(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Grid values plus :meth:`shift`; the float tensor ``codes``, within ``[0, n_codes)``, may be overwritten."""

    @abstractmethod
    def slope(self, tensor: torch.Tensor, base: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Straight-through slope of the grid value by the value, within the range, as a new tensor."""

    def shift(self, grid: Grid) -> torch.Tensor | None:
        """What is subtracted from :meth:`base`; None for nothing."""
        return None

    def values(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Grid values of float ``codes``, which may be overwritten."""
        base, shift = self.base(codes, grid), self.shift(grid)
        return base if shift is None else base - shift

    def reconstruct(self, tensor: torch.Tensor, grid: Grid, n_codes: int) -> torch.Tensor:
        """Grid values of ``tensor``, a new tensor without gradient."""
        return self.values(self.codes(tensor, grid).clamp_(0, n_codes - 1), grid)

    def searched(self, grid: Grid, n_codes: int) -> tuple[Grid, int]:
        """Grid and number of codes with which a search measures ``grid``; its own, except in a reproduction."""
        return grid, n_codes

    def constants(self, grid: Grid, n_codes: int) -> tuple[float, ...]:
        """Plain numbers that :meth:`fake_quantize` wants, derived from the grid once, when it changes."""
        return ()

    def fake_quantize(
        self, tensor: torch.Tensor, grid: Grid, n_codes: int, constants: tuple[float, ...]
    ) -> torch.Tensor:
        """:meth:`reconstruct` with straight-through gradients, bit for bit the same values."""
        result: torch.Tensor = _StraightThrough.apply(tensor, self, n_codes, *grid)
        return result

    def learned(self, granularity: Granularity) -> tuple[str, ...]:
        """Those of :attr:`numbers` that :meth:`fake_quantize` gives a gradient."""
        return ()

    def has_codes(self, grid: Grid) -> bool:
        """Whether a value has a code; not on the grid of a reproduction that has no integer ones."""
        return True

    def affine(self, grid: Grid) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Scale and zero point, where a value is ``scale · (code - zero point)``; None elsewhere."""
        return None

    def exponents(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor | None:
        """Whole ``e`` with ``base = 2**e``, where there is one for each code; None elsewhere."""
        return None

    def integers(self, codes: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A unit and whole numbers from 0 to 255 with ``base = unit · number``, where there are such; else None."""
        return None

    def table(self, grid: Grid, n_codes: int) -> torch.Tensor:
        """All grid values by code, ``(n_codes, *shape of the grid's numbers)``."""
        first = grid[0]
        codes = torch.arange(n_codes, dtype=first.dtype, device=first.device)
        return self.values(codes.view(-1, *(1 for _ in first.shape)).expand(-1, *first.shape).clone(), grid)


class _StraightThrough(torch.autograd.Function):
    """Grid values; the gradient is the format's slope within half a code of the outermost codes, 0 beyond."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, form: Format, n_codes: int, *grid: torch.Tensor) -> torch.Tensor:
        codes = form.codes(tensor, grid)
        base, shift = form.base(codes.clamp(0, n_codes - 1), grid), form.shift(grid)
        ctx.save_for_backward(tensor, codes, base, *grid)
        ctx.form, ctx.n_codes = form, n_codes
        return base if shift is None else base - shift

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensor, codes, base, *grid = ctx.saved_tensors
        slope = ctx.form.slope(tensor, base, tuple(grid)).mul_(grads[0])
        # hardtanh's gradient keeps `slope` strictly between its bounds: the fused form of a mask.
        inside = torch.ops.aten.hardtanh_backward(slope, codes, -0.5, ctx.n_codes - 0.5)
        return inside, None, None, *(None for _ in grid)
