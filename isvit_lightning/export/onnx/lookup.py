"""Staircases as ONNX operators: a lookup where few numbers are flipped by it, else one that is exact."""

from dataclasses import dataclass

import torch
from torch import nn

from isvit_lightning.export.onnx import ops
from isvit_lightning.export.onnx.encoders import Encoder
from isvit_lightning.export.onnx.staircase import Binned, Split, bin_steps, split_steps
from isvit_lightning.export.operands import Steps

FLIPPED_AT_MOST = 0.001
"""Share of a tensor's numbers that a lookup may flip."""


@dataclass(frozen=True)
class Range:
    """What is known of the numbers that a staircase sees.

    Args:
        samples: some of them; None where there are none.
        is_probability: whether they lie between 0 and 1.
    """

    samples: torch.Tensor | None = None
    is_probability: bool = False


class _Values(nn.Module):
    """Values by index, as integers of 8 bits where that can be."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        integers = _integers(steps)
        self.is_integer = integers is not None
        if integers is None:
            self.numbers = steps.values.float()
            return
        self.numbers, unit, zero_point = integers
        self.register_buffer("unit", torch.tensor(unit))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """What stands in a table of :attr:`numbers`, in float."""
        if not self.is_integer:
            return numbers
        return ops.dequantize(numbers, self.get_buffer("unit"), self.get_buffer("zero_point"))


def _integers(steps: Steps) -> tuple[torch.Tensor, float, int] | None:
    """Values as ``unit · (integers - zero_point)`` with uint8 integers; None where there are none."""
    if not steps.parts or steps.values.dim() != 1:
        return None
    unit = steps.parts[0].unit
    # The zero point is whole where the shift is a power of two too.
    while 0 < steps.shift < unit:
        unit /= 2
    total = sum((part.unit / unit * part.integers.double() for part in steps.parts), torch.zeros(1).double())
    zero_point = steps.shift / unit
    whole = zero_point == round(zero_point) and torch.equal(total, total.round())
    if not whole or not 0 <= zero_point <= 255 or float(total.min()) < 0 or float(total.max()) > 255:
        return None
    return total.to(torch.uint8), unit, int(zero_point)


class LookupEncoder(Encoder):
    """``Mul``, ``Cast``, ``GatherElements``: a few numbers beside the thresholds are flipped.

    Args:
        steps: one staircase for all of the tensor.
        binned: its table.
        highest: upper bound that numbers are clipped to; None where none lies above it.
    """

    def __init__(self, steps: Steps, binned: Binned, highest: float | None) -> None:
        values = _Values(steps)
        super().__init__("lookup", binned.flipped, is_integer=values.is_integer)
        self.values, self.of_root, self.bounds = values, binned.of_root, _Bounds(highest)
        self.register_buffer("table", values.numbers[binned.steps])
        self.register_buffer("scale", torch.tensor(binned.scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values of the grid."""
        x = self.bounds(x)
        x = x.sqrt() if self.of_root else x
        return self.values(ops.look_up(self.get_buffer("table"), ops.to_integers(x * self.get_buffer("scale"))))


class ExactLookupEncoder(Encoder):
    """Two lookups: of the one threshold that lies in the bin, and of the value on either side of it.

    Bins are equal in the square root of the number, which spreads small numbers.

    Args:
        steps: one staircase for all of the tensor.
        split: its bins.
        highest: upper bound that numbers are clipped to; None where none lies above it.
    """

    def __init__(self, steps: Steps, split: Split, highest: float | None) -> None:
        values = _Values(steps)
        super().__init__("exact lookup", is_integer=values.is_integer)
        self.values, self.bounds = values, _Bounds(highest)
        self.register_buffer("thresholds", split.thresholds)
        self.register_buffer("table", values.numbers[split.steps])
        self.register_buffer("scale", torch.tensor(split.scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values of the grid."""
        x = self.bounds(x)
        place = ops.to_integers(x.sqrt() * self.get_buffer("scale"))
        side = (x >= ops.look_up(self.get_buffer("thresholds"), place)).to(torch.int32)
        return self.values(ops.look_up(self.get_buffer("table"), place * 2 + side))


class _Bounds(nn.Module):
    """Numbers between 0 and ``highest``; as they are where that is None."""

    def __init__(self, highest: float | None) -> None:
        super().__init__()
        self.is_bounded = highest is not None
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(highest or 0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``, clipped."""
        return ops.clip(x, self.get_buffer("low"), self.get_buffer("high")) if self.is_bounded else x


class ComparedEncoder(Encoder):
    """A comparison with each threshold: exact, and for any staircase.

    Args:
        steps: one staircase, or one for each group.
    """

    def __init__(self, steps: Steps) -> None:
        super().__init__("comparisons", is_integer=False)
        self.register_buffer("thresholds", steps.thresholds.clone())
        self.register_buffer("lowest", steps.values[0].clone())
        self.register_buffer("rises", steps.values.double().diff(dim=0).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values of the grid."""
        values = self.get_buffer("lowest") + torch.zeros_like(x)
        for threshold, rise in zip(self.get_buffer("thresholds"), self.get_buffer("rises"), strict=True):
            values = values + (x >= threshold).float() * rise
        return values


def encode_steps(steps: Steps, seen: Range, flipped_at_most: float = FLIPPED_AT_MOST) -> Encoder:
    """The fastest encoder of a staircase that flips few numbers.

    Args:
        steps: thresholds and values.
        seen: what is known of the numbers.
        flipped_at_most: share of the numbers that a lookup may flip.
    """
    if steps.values.dim() != 1 or not len(steps.thresholds) or float(steps.thresholds[0]) <= 0:
        return ComparedEncoder(steps)
    highest = 1.0 if seen.is_probability else float(steps.thresholds[-1]) * 1.01
    bound = None if seen.is_probability else highest
    for of_root in (False, True):
        binned = bin_steps(steps, seen.samples, highest, of_root=of_root)
        if binned.flipped <= flipped_at_most:
            return LookupEncoder(steps, binned, bound)
    split = split_steps(steps, highest)
    return ComparedEncoder(steps) if split is None else ExactLookupEncoder(steps, split, bound)
