"""Quantizers as ONNX operators, which give the values of the grid: by ``DequantizeLinear``, where they are integers.

Engines multiply integers where both operands of a product come out of a ``DequantizeLinear``.
"""

import torch
from torch import nn

from isvit_lightning.export.onnx import ops
from isvit_lightning.export.operands import Affine


class Encoder(nn.Module):
    """A quantizer in a graph.

    Args:
        kind: how it is written, for the report.
        flipped: share of the numbers that get another value than the staircase gives.
        is_integer: whether its values come out of integers.
    """

    def __init__(self, kind: str, flipped: float = 0.0, *, is_integer: bool = True) -> None:
        super().__init__()
        self.kind, self.flipped, self.is_integer = kind, flipped, is_integer
        self.outer: torch.Tensor | None = None
        """Scale that the product is multiplied with; None for 1."""


class AffineEncoder(Encoder):
    """Codes of equal steps with one scale for all of the tensor: ``Clip``, ``QuantizeLinear``, ``DequantizeLinear``.

    Args:
        affine: one scale and zero point.
    """

    def __init__(self, affine: Affine) -> None:
        super().__init__("affine")
        scale, zero_point, offset = (number.flatten()[0] for number in (affine.scale, affine.zero_point, affine.offset))
        low, high = -offset, affine.n_codes - 1 - offset
        # The range of int8 saturates by itself.
        self.is_clipped = int(low) > -128 or int(high) < 127
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", (zero_point - offset).to(torch.int8))
        self.register_buffer("low", (low - (zero_point - offset)) * scale)
        self.register_buffer("high", (high - (zero_point - offset)) * scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values of the grid."""
        if self.is_clipped:
            x = ops.clip(x, self.get_buffer("low"), self.get_buffer("high"))
        scale, zero_point = self.get_buffer("scale"), self.get_buffer("zero_point")
        return ops.dequantize(ops.quantize(x, scale, zero_point), scale, zero_point)


class GroupedEncoder(Encoder):
    """Codes of equal steps with several scales, which broadcast against the tensor.

    Args:
        affine: scales and zero points.
        is_outer: whether the product can be multiplied with the scales, which do not change along its sum; then the
            values are whole numbers.
    """

    def __init__(self, affine: Affine, *, is_outer: bool) -> None:
        as_integers = is_outer and affine.is_signed
        super().__init__("affine by group", is_integer=as_integers)
        self.as_integers = as_integers
        self.register_buffer("scale", affine.scale.clone())
        self.register_buffer("low", -affine.zero_point)
        self.register_buffer("high", affine.n_codes - 1 - affine.zero_point)
        self.register_buffer("one", torch.ones(()))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int8))
        self.outer = self.get_buffer("scale") if as_integers else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values of the grid; divided by :attr:`outer`, where there is one."""
        steps = torch.minimum(
            torch.maximum(x / self.get_buffer("scale"), self.get_buffer("low")), self.get_buffer("high")
        )
        if not self.as_integers:
            return steps.round() * self.get_buffer("scale")
        one, zero = self.get_buffer("one"), self.get_buffer("zero")
        return ops.dequantize(ops.quantize(steps, one, zero), one, zero)


def encode_affine(affine: Affine, summed: int | None = None) -> Encoder:
    """The encoder of equal steps.

    Args:
        affine: scales and zero points.
        summed: axis of the sum of the product, counted from the end; None where the product cannot be multiplied with
            scales of its operand.
    """
    if affine.scale.numel() == 1:
        return AffineEncoder(affine)
    shape = affine.scale.shape
    is_outer = summed is not None and (len(shape) < -summed or shape[summed] == 1)
    return GroupedEncoder(affine, is_outer=is_outer)
