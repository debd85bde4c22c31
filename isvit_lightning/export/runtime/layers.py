"""Layers whose products are those of integers, and those that stay float on their grids."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn

from isvit_lightning.export.lower import LoweredConv2d, LoweredLinear, LoweredMatMul, Weight
from isvit_lightning.export.operands import Encoding, Steps, unshifted
from isvit_lightning.export.runtime.encode import Operand, Snap, Staircase
from isvit_lightning.export.runtime.products import int_mm, is_small, matmul


class IntegerLinear(ABC, nn.Module):
    """A linear layer as products of integers, one for each part of its input.

    Args:
        layer: its integers.
        encoding: of its input.
        weight: its weight.
        signed: whether the integers of its input are int8, not uint8.
    """

    scales: torch.Tensor
    bias: torch.Tensor | None
    left_over: torch.Tensor | None

    def __init__(self, layer: LoweredLinear, encoding: Encoding, weight: Weight, signed: bool) -> None:
        super().__init__()
        self.operand = Operand(encoding, signed)
        factors = [unit * self.operand.factor for unit in self.operand.units]
        self.register_buffer("scales", torch.stack([factor * weight.scale for factor in factors]))
        self.register_buffer("bias", layer.bias)
        # What 8 bits leave of a weight's zero point meets the sum of the input's integers.
        has_zero_point = bool((weight.zero_point != 0).any())
        self.register_buffer("left_over", self.scales * weight.zero_point if has_zero_point else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(…, in_features)`` to ``(…, out_features)``."""
        parts = self.operand(x)
        result = self.product(parts[0], self.scales[0], self.bias)
        for part, scale in zip(parts[1:], self.scales[1:], strict=True):
            result = result + self.product(part, scale, None)
        if self.left_over is not None:
            zero_point = self.operand.zero_point
            for part, factor in zip(parts, self.left_over, strict=True):
                sums = part.sum(dim=-1, keepdim=True, dtype=torch.float32)
                sums = sums if zero_point is None else sums - x.shape[-1] * zero_point
                result = result - sums * factor
        return result

    @abstractmethod
    def product(self, integers: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``scale · Σ (integers - zero point) · weight + bias`` in float32."""


class OneDnnLinear(IntegerLinear):
    """By oneDNN: zero point, scales and bias are part of the product."""

    packed: torch.Tensor

    def __init__(self, layer: LoweredLinear, encoding: Encoding, weight: Weight) -> None:
        super().__init__(layer, encoding, weight, signed=False)
        self.zero_point = 0 if self.operand.zero_point is None else int(self.operand.zero_point)
        self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(weight.integers, None), persistent=False)

    def product(self, integers: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``(…, in_features)`` to ``(…, out_features)``."""
        result: torch.Tensor = torch.ops.isvit_lightning.linear(integers, self.packed, scale, self.zero_point, bias)
        return result


class Int8Linear(IntegerLinear):
    """By a product of int8 matrices, on any device that has one."""

    weight: torch.Tensor
    constant: torch.Tensor | None

    def __init__(self, layer: LoweredLinear, encoding: Encoding, weight: Weight) -> None:
        super().__init__(layer, encoding, weight, signed=True)
        self.register_buffer("weight", weight.integers)
        zero_point = self.operand.zero_point
        sums = weight.integers.sum(dim=1, dtype=torch.float32)
        self.register_buffer("constant", None if zero_point is None else zero_point * sums)

    def product(self, integers: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``(…, in_features)`` to ``(…, out_features)``."""
        sums = int_mm(integers.reshape(-1, integers.shape[-1]), self.weight.t())
        result = (sums if self.constant is None else sums - self.constant) * scale
        result = result if bias is None else result + bias
        return result.view(*integers.shape[:-1], result.shape[-1])


class OneDnnConv2d(IntegerLinear):
    """A convolution by oneDNN; its padding is the code of zero.

    Args:
        layer: its integers.
        encoding: of its input.
        weight: its weight, without zero points.
    """

    packed: torch.Tensor

    def __init__(self, layer: LoweredConv2d, encoding: Encoding, weight: Weight) -> None:
        super().__init__(layer, encoding, weight, signed=False)
        self.zero_point = 0 if self.operand.zero_point is None else int(self.operand.zero_point)
        geometry = (layer.stride, layer.padding, layer.dilation)
        self.geometry = (*(list(numbers) for numbers in geometry), layer.groups)
        packed = torch.ops.onednn.qconv_prepack(
            weight.integers, torch.ones_like(weight.scale), 1.0, self.zero_point, *self.geometry, None
        )
        self.register_buffer("packed", packed, persistent=False)

    def product(self, integers: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``(batch, in_channels, height, width)`` to ``(batch, out_channels, height', width')``."""
        result: torch.Tensor = torch.ops.isvit_lightning.conv2d(
            integers, self.packed, scale, self.zero_point, bias, *self.geometry
        )
        return result


class FloatLinear(nn.Module):
    """A linear layer whose product is one of floats, on the grids of its operands.

    Args:
        layer: its values.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layer: LoweredLinear) -> None:
        super().__init__()
        encoding = layer.encoding
        if encoding is not None and layer.reason is None:
            encoding = unshifted(encoding)
        self.snap = nn.Identity() if encoding is None else Snap(encoding)
        self.register_buffer("weight", layer.values)
        self.register_buffer("bias", layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(…, in_features)`` to ``(…, out_features)``."""
        return F.linear(self.snap(x), self.weight, self.bias)


class FloatConv2d(FloatLinear):
    """The same of a convolution.

    Args:
        layer: its values.
    """

    def __init__(self, layer: LoweredConv2d) -> None:
        super().__init__(layer)
        self.geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, in_channels, height, width)`` to ``(batch, out_channels, height', width')``."""
        return F.conv2d(self.snap(x), self.weight, self.bias, *self.geometry)


class IntegerMatMul(nn.Module):
    """Product of two activations in int8, part by part of the left one.

    Args:
        left: encoding of the left operand.
        right: encoding of the right operand, which has equal steps.
    """

    def __init__(self, left: Encoding, right: Encoding) -> None:
        super().__init__()
        self.left, self.right = Operand(left, signed=True), Operand(right, signed=True)
        self.joined: Staircase | None = None
        if isinstance(left, Steps) and len(left.parts) > 1:
            numbers = torch.stack([part.unit * part.integers for part in left.parts]).sum(dim=0)
            self.joined = Staircase(left.thresholds, [numbers])

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Product of ``a (…, n, k)`` and ``b (…, k, m)``."""
        (right,) = self.right(b)
        result = 0.0 if self.left.shift == 0 else -self.left.shift * self._sums(right)
        if self.joined is not None and self.right.zero_point is None and is_small(a, b):
            # As long as it is floats that are multiplied, all parts are in one product.
            result = torch.matmul(self.joined(a)[0], right.float()) + result
        else:
            for unit, left in zip(self.left.units, self.left(a), strict=True):
                result = self._product(left, right) * unit + result
        return result * (self.left.factor * self.right.factor)

    def _product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """``Σ (left - zero point) · (right - zero point)``."""
        product = matmul(left, right)
        if self.right.zero_point is not None:
            product = product - left.sum(dim=-1, keepdim=True, dtype=torch.float32) * self.right.zero_point
        if self.left.zero_point is not None:
            product = product - self.left.zero_point * self._sums(right)
        return product

    def _sums(self, right: torch.Tensor) -> torch.Tensor:
        """``Σ (right - zero point)`` over the axis of the product."""
        sums = right.sum(dim=-2, keepdim=True, dtype=torch.float32)
        return sums if self.right.zero_point is None else sums - right.shape[-2] * self.right.zero_point


class FloatMatMul(nn.Module):
    """Product of two activations on their grids in float.

    Args:
        layer: their encodings.
    """

    def __init__(self, layer: LoweredMatMul) -> None:
        super().__init__()
        self.left, self.right = (
            nn.Identity() if encoding is None else Snap(encoding) for encoding in (layer.left, layer.right)
        )

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Product of ``a (…, n, k)`` and ``b (…, k, m)``."""
        return torch.matmul(self.left(a), self.right(b))
