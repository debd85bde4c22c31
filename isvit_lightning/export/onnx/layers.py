"""Each quantized layer as ONNX operators, found by its type."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce, singledispatch

import torch
from torch import nn

from isvit_lightning.export.lower import Lowered, LoweredConv2d, LoweredLinear, LoweredMatMul
from isvit_lightning.export.onnx import ops
from isvit_lightning.export.onnx.encoders import Encoder, encode_affine
from isvit_lightning.export.onnx.lookup import FLIPPED_AT_MOST, Range, encode_steps
from isvit_lightning.export.operands import Affine, Encoding, unshifted


@dataclass(frozen=True)
class Seen:
    """What is known of the numbers that the staircases of a layer see.

    Args:
        ranges: by path of the quantizer.
        flipped_at_most: share of a tensor's numbers that a lookup may flip.
        wide: whether an input has codes of more than 7 bits; weights then have zero points, all of them zero, without
            which ONNX Runtime cannot be asked for sums that do not overflow.
    """

    ranges: Mapping[str, Range]
    flipped_at_most: float = FLIPPED_AT_MOST
    wide: bool = False

    def encoder(self, encoding: Encoding, path: str, summed: int | None = None) -> Encoder:
        """The encoder of a quantizer.

        Args:
            encoding: what it does.
            path: its own.
            summed: axis of the sum of the product, where that can be multiplied with scales of this operand.
        """
        if isinstance(encoding, Affine):
            return encode_affine(encoding, summed)
        return encode_steps(encoding, self.ranges.get(path, Range()), self.flipped_at_most)


class GraphWeight(nn.Module):
    """A weight as integers of 8 bits with a scale for each output channel, or as the floats of its grid.

    Args:
        product: the layer.
        axis: of the output channels in what the operator reads.
        wide: whether zero points are written where they are all zero.
    """

    zero_point: torch.Tensor | None

    def __init__(self, product: LoweredLinear, axis: int, wide: bool) -> None:
        super().__init__()
        self.axis = axis
        self.is_integer = product.weight is not None
        if product.weight is None:
            self.register_buffer("values", _turned(product.values, axis))
            return
        zero_point = product.weight.zero_point.to(torch.int8)
        self.register_buffer("integers", _turned(product.weight.integers, axis))
        self.register_buffer("scale", product.weight.scale)
        self.register_buffer("zero_point", zero_point if wide or bool(zero_point.any()) else None)

    def forward(self) -> torch.Tensor:
        """The weight in float."""
        if not self.is_integer:
            return self.get_buffer("values")
        return ops.dequantize(self.get_buffer("integers"), self.get_buffer("scale"), self.zero_point, self.axis)


def _turned(weight: torch.Tensor, axis: int) -> torch.Tensor:
    return weight.t().contiguous() if axis == 1 else weight


class GraphLinear(nn.Module):
    """A linear layer: ``MatMul`` of two ``DequantizeLinear`` and ``Add``.

    Args:
        product: the layer.
        seen: what its staircase sees.
        path: of the layer.
    """

    bias: torch.Tensor | None

    def __init__(self, product: LoweredLinear, seen: Seen, path: str) -> None:
        super().__init__()
        encoding = product.encoding
        if encoding is not None and product.reason is None:
            encoding = unshifted(encoding)
        self.encoder = None if encoding is None else seen.encoder(encoding, f"{path}.input_quantizer")
        self.weight = GraphWeight(product, 1, seen.wide)
        # ONNX Runtime makes a float Gemm of a product and a bias of one axis, before it looks for integers.
        self.register_buffer("bias", None if product.bias is None else product.bias.view(1, 1, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(…, in_features)`` to ``(…, out_features)``."""
        is_matrix = x.dim() == 2
        x = x.unsqueeze(1) if is_matrix else x
        y = ops.matmul(x if self.encoder is None else self.encoder(x), self.weight())
        y = y if self.bias is None else y + self.get_buffer("bias")
        return y.squeeze(1) if is_matrix else y


class GraphConv2d(nn.Module):
    """A convolution.

    Args:
        product: the layer.
        seen: what its staircase sees.
        path: of the layer.
    """

    bias: torch.Tensor | None

    def __init__(self, product: LoweredConv2d, seen: Seen, path: str) -> None:
        super().__init__()
        encoding = product.encoding
        self.encoder = None if encoding is None else seen.encoder(encoding, f"{path}.input_quantizer")
        self.weight = GraphWeight(product, 0, seen.wide)
        self.geometry = (product.stride, product.padding, product.dilation, product.groups)
        self.register_buffer("bias", product.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, in_channels, height, width)`` to ``(batch, out_channels, height', width')``."""
        return torch.conv2d(x if self.encoder is None else self.encoder(x), self.weight(), self.bias, *self.geometry)


class GraphMatMul(nn.Module):
    """A product of two activations.

    Args:
        product: the layer.
        seen: what its staircases see.
        path: of the layer.
    """

    scale: torch.Tensor | None

    def __init__(self, product: LoweredMatMul, seen: Seen, path: str) -> None:
        super().__init__()
        left, right = product.left, product.right
        self.left = None if left is None else seen.encoder(left, f"{path}.left_quantizer", summed=-1)
        self.right = None if right is None else seen.encoder(right, f"{path}.right_quantizer", summed=-2)
        scales = [side.outer for side in (self.left, self.right) if side is not None and side.outer is not None]
        self.register_buffer("scale", reduce(torch.mul, scales) if scales else None)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Product of ``a (…, n, k)`` and ``b (…, k, m)``."""
        product = ops.matmul(a if self.left is None else self.left(a), b if self.right is None else self.right(b))
        return product if self.scale is None else product * self.scale


@singledispatch
def graph_layer(product: Lowered, _seen: Seen, _path: str) -> nn.Module:
    """The layer as ONNX operators."""
    raise TypeError(f"{type(product).__name__} has no form in ONNX.")


@graph_layer.register
def _(product: LoweredLinear, seen: Seen, path: str) -> nn.Module:
    return GraphLinear(product, seen, path)


@graph_layer.register
def _(product: LoweredConv2d, seen: Seen, path: str) -> nn.Module:
    return GraphConv2d(product, seen, path)


@graph_layer.register
def _(product: LoweredMatMul, seen: Seen, path: str) -> nn.Module:
    return GraphMatMul(product, seen, path)
