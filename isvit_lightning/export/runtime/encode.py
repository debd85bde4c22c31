"""Activations to integers, in element-wise passes that a compiler fuses with what comes before them."""

from collections.abc import Sequence

import torch
from torch import nn

from isvit_lightning.export.operands import Affine, Encoding


class Codes(nn.Module):
    """Codes of equal steps.

    Args:
        affine: their scale and zero point.
        offset: what is subtracted from the codes, which are int8 then; None leaves them as they are, uint8.
    """

    scale: torch.Tensor
    added: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, affine: Affine, offset: torch.Tensor | None = None) -> None:
        super().__init__()
        self.dtype = torch.uint8 if offset is None else torch.int8
        added = affine.zero_point if offset is None else affine.zero_point - offset
        self.moves = bool((added != 0).any())
        self.register_buffer("scale", affine.scale)
        self.register_buffer("added", added)
        self.register_buffer("low", added - affine.zero_point)
        self.register_buffer("high", self.low + affine.n_codes - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Codes of ``x``, same shape."""
        # The quotient that the quantizer rounds: a product with the reciprocal would move ties.
        codes = torch.round(x / self.scale)
        codes = codes + self.added if self.moves else codes
        return torch.minimum(torch.maximum(codes, self.low), self.high).to(self.dtype)


class Staircase(nn.Module):
    """What a staircase gives, without a logarithm: by comparisons in one compiled pass, or by a search.

    Args:
        thresholds: ascending, ``(n_values - 1, …)``.
        outputs: numbers by index of the value, each ``(n_values, …)``.
        dtype: of what is given.
    """

    thresholds: torch.Tensor
    outputs: torch.Tensor

    def __init__(
        self, thresholds: torch.Tensor, outputs: Sequence[torch.Tensor], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("thresholds", thresholds)
        self.register_buffer("outputs", torch.stack([*outputs]))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """One tensor of the shape of ``x`` for each of the outputs."""
        if self.thresholds.dim() > 1 or (torch.compiler.is_compiling() and len(self.thresholds) <= _COMPARED):
            return [self._compared(x, output) for output in self.outputs]
        index = self._index(x)
        return [output.index_select(0, index).view(x.shape).to(self.dtype) for output in self.outputs]

    def _index(self, x: torch.Tensor) -> torch.Tensor:
        """Index of the value of each number, flat."""
        if len(self.thresholds) > _COMPARED:
            return torch.bucketize(x, self.thresholds, right=True, out_int32=True).flatten()
        index = torch.zeros_like(x, dtype=torch.uint8)
        for threshold in self.thresholds:
            index.add_(x >= threshold)
        return index.flatten().int()

    def _compared(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        result = output[0].expand_as(x)
        for threshold, number in zip(self.thresholds, output[1:], strict=True):
            result = torch.where(x >= threshold, number, result)
        return result.to(self.dtype)


_COMPARED = 31
"""Thresholds up to which comparing with each is faster than a search among them."""


class Snap(nn.Module):
    """Values on the grid, in float.

    Args:
        encoding: of the tensor.
    """

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.codes: Codes | Staircase
        if isinstance(encoding, Affine):
            # Not always an int8; the values of the codes are the same in any type.
            self.codes = Codes(encoding, encoding.zero_point)
            self.codes.dtype = torch.float32
        else:
            self.codes = Staircase(encoding.thresholds, [encoding.values])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values of ``x``, same shape."""
        if isinstance(self.codes, Codes):
            return self.codes(x) * self.codes.scale
        values: torch.Tensor = self.codes(x)[0]
        return values


class Operand(nn.Module):
    """The integers of an operand: ``value = factor · Σ unit · (integers - zero_point) - shift``, summed over its parts.

    Args:
        encoding: of an operand that has integers.
        signed: int8 with :attr:`Affine.offset` subtracted, else uint8.

    Attributes:
        units: of each part.
        zero_point: what is left to subtract, in the shape of the granularity; None for nothing.
        factor: in the shape of the granularity.
    """

    zero_point: torch.Tensor | None
    factor: torch.Tensor

    def __init__(self, encoding: Encoding, signed: bool) -> None:
        super().__init__()
        self.encode: Codes | Staircase
        self.units: tuple[float, ...] = (1.0,)
        self.shift = 0.0
        zero_point, factor = None, torch.ones(())
        if isinstance(encoding, Affine):
            left = encoding.zero_point - encoding.offset if signed else encoding.zero_point
            zero_point, factor = left if bool((left != 0).any()) else None, encoding.scale
            self.encode = Codes(encoding, encoding.offset if signed else None)
        else:
            moved = 128.0 if signed and not all(part.is_signed for part in encoding.parts) else 0.0
            numbers = [part.integers - moved for part in encoding.parts]
            zero_point = torch.tensor(-moved) if moved else None
            self.encode = Staircase(encoding.thresholds, numbers, torch.int8 if signed else torch.uint8)
            self.units = tuple(part.unit for part in encoding.parts)
            self.shift = encoding.shift
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("factor", factor)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Integers of each part, in the shape of ``x``."""
        given = self.encode(x)
        return given if isinstance(given, list) else [given]
