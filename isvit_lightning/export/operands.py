"""How a tensor becomes integers, and what these mean: what an engine has to know of a quantizer."""

import math
from dataclasses import dataclass, replace

import torch

from isvit_lightning.export.thresholds import thresholds_of
from isvit_lightning.quantizers import Quantizer

SEVEN_BITS = 128
"""Codes of which two products with an int8 can be summed in 16 bits, as x86 without VNNI does."""
_OCTAVES = 7
"""Powers of two that a positive int8 holds: 1 to 64."""


@dataclass(frozen=True)
class Affine:
    """Codes of equal steps: ``value = scale · (code - zero_point)``, ``code = clamp(round(x / scale) + zero_point)``.

    Args:
        scale: in the shape of the quantizer's granularity, which broadcasts against the tensor.
        zero_point: whole numbers in ``[0, n_codes)`` as floats, same shape.
        n_codes: number of codes, at most 256.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    n_codes: int

    @property
    def is_signed(self) -> bool:
        """Whether every ``code - zero_point`` is an int8: always up to seven bits."""
        low, high = -self.zero_point, self.n_codes - 1 - self.zero_point
        return bool((low >= -128).all()) and bool((high <= 127).all())

    @property
    def offset(self) -> torch.Tensor:
        """What is subtracted from a code to make it an int8: its zero point, or 128 where that leaves some outside."""
        return self.zero_point if self.is_signed else torch.full_like(self.zero_point, 128.0)


@dataclass(frozen=True)
class Part:
    """Integers of a share of the values.

    Args:
        unit: value of 1.
        integers: from 0 to 255, by index of the value, ``(n_values,)`` as floats.
    """

    unit: float
    integers: torch.Tensor

    @property
    def is_signed(self) -> bool:
        """Whether the integers are int8 as they are."""
        return bool((self.integers <= 127).all())


@dataclass(frozen=True)
class Steps:
    """A staircase: ``values[i]`` for ``thresholds[i - 1] <= x < thresholds[i]``.

    Args:
        thresholds: ascending, ``(n_values - 1, *shape of the granularity)``.
        values: ascending, ``(n_values, *shape of the granularity)``.
        parts: integers with ``values = Σ unit · integers - shift``; none where there are none of 8 bits.
        shift: what is subtracted from them.
    """

    thresholds: torch.Tensor
    values: torch.Tensor
    parts: tuple[Part, ...] = ()
    shift: float = 0.0


Encoding = Affine | Steps


def unshifted(encoding: Encoding) -> Encoding:
    """``encoding`` without its shift, where that is in the bias of a layer."""
    if isinstance(encoding, Affine):
        return encoding
    return replace(encoding, values=encoding.values + encoding.shift, shift=0.0)


def is_wide(encoding: Encoding | None) -> bool:
    """Whether integers of an operand are wider than 7 bits, so that two products with an int8 may need 17."""
    if isinstance(encoding, Steps):
        return not all(part.is_signed for part in encoding.parts)
    return encoding is not None and encoding.n_codes > SEVEN_BITS


def encoding_of(quantizer: Quantizer) -> Encoding:
    """What a quantizer does, as integers where its format has equal steps, else as a staircase.

    Raises:
        IsvitError: the quantizer is not calibrated, or has no integer codes.
    """
    # Refuses what has no codes.
    quantizer.encode(quantizer.table()[:1])
    affine = quantizer.format.affine(quantizer.grid)
    if affine is not None:
        scale, zero_point = (number.detach().clone() for number in affine)
        return Affine(scale, zero_point, quantizer.n_codes)
    thresholds, values = thresholds_of(quantizer)
    parts, shift = _parts(quantizer, values)
    return Steps(thresholds, values, parts, shift)


def _parts(quantizer: Quantizer, values: torch.Tensor) -> tuple[tuple[Part, ...], float]:
    """Values as integers: those of the format, or powers of two, seven octaves at a time."""
    shift_of_grid = quantizer.format.shift(quantizer.grid)
    shift = 0.0 if shift_of_grid is None else float(shift_of_grid) if shift_of_grid.dim() == 0 else math.nan
    codes = torch.arange(quantizer.n_codes, dtype=values.dtype, device=values.device)
    if values.dim() != 1 or math.isnan(shift):
        return (), 0.0
    integers = quantizer.format.integers(codes.clone(), quantizer.grid)
    if integers is not None:
        return (Part(float(integers[0]), torch.unique(integers[1])),), shift
    exponents = quantizer.format.exponents(codes, quantizer.grid)
    if exponents is None:
        return (), 0.0
    exponents = torch.unique(exponents)
    lowest, highest = int(exponents.min()), int(exponents.max())
    parts = []
    for first in range(lowest, highest + 1, _OCTAVES):
        inside = (exponents >= first) & (exponents < first + _OCTAVES)
        parts.append(Part(2.0**first, torch.where(inside, (exponents - first).exp2(), torch.zeros_like(exponents))))
    return tuple(parts), shift
