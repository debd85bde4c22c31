"""The seam between a calibrated network and any integer engine: each product of it, in integers where that can be.

One handler for each quantized layer, found by its type and fed by what a format tells of itself. What engines build on
it: ONNX graphs, and PyTorch's own integer products.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import nn

from isvit_lightning.export.operands import Affine, Encoding, Steps, encoding_of, is_wide
from isvit_lightning.layers import QuantConv2d, QuantLinear, QuantMatMul
from isvit_lightning.quantizers import Quantizer


@dataclass(frozen=True)
class Weight:
    """Centred codes of a weight: ``W = scale · (integers - zero_point)``.

    Args:
        integers: int8 in the shape of the weight: its codes less their zero points.
        scale: of each output channel, ``(out_channels,)``.
        zero_point: of each output channel, ``(out_channels,)``; zeros up to seven bits. At eight bits a code less its
            zero point need not be an int8: then codes less 128 are stored, and what is left of the zero point is here.
    """

    integers: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor

    def values(self) -> torch.Tensor:
        """The weight in float32."""
        shape = (-1, *(1 for _ in self.integers.shape[1:]))
        return (self.integers.float() - self.zero_point.view(shape)) * self.scale.view(shape)


@dataclass(frozen=True)
class LoweredLinear:
    """A linear layer.

    Args:
        encoding: of its input; None leaves it float.
        weight: its weight in integers; None where that has no equal steps.
        values: its weight on its grid in float, ``(out_features, in_features)``.
        bias: ``(out_features,)``, the shift of the input's format folded in where the product is one of integers; None
            for none.
        reason: why the product is one of floats; None where it is one of integers.
    """

    encoding: Encoding | None
    weight: Weight | None
    values: torch.Tensor
    bias: torch.Tensor | None
    reason: str | None


@dataclass(frozen=True)
class LoweredConv2d(LoweredLinear):
    """A convolution; its weight is ``(out_channels, in_channels / groups, kernel, kernel)``.

    Args:
        stride: of the kernel.
        padding: of the input, with zeros behind its quantizer.
        dilation: of the kernel.
        groups: of channels.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class LoweredMatMul:
    """A product of two activations.

    Args:
        left: of the left operand; None leaves it float.
        right: of the right operand; None leaves it float.
        reason: why the product is one of floats; None where it is one of integers.
    """

    left: Encoding | None
    right: Encoding | None
    reason: str | None


Lowered = LoweredLinear | LoweredMatMul


def lower(model: nn.Module) -> dict[str, Lowered]:
    """Every product of a calibrated network by the path of its layer.

    Args:
        model: with quantizers in front of its operands.

    Raises:
        IsvitError: a quantizer is not calibrated, or has no integer codes.
    """
    found = {path: lowered(module) for path, module in model.named_modules()}
    return {path: product for path, product in found.items() if product is not None}


def float_products(products: Mapping[str, Lowered]) -> dict[str, str]:
    """Why each product that is one of floats is so, by path."""
    return {path: product.reason for path, product in products.items() if product.reason is not None}


@singledispatch
def lowered(_layer: nn.Module) -> Lowered | None:
    """The product of one layer; None where it is none."""
    return None


@lowered.register
def _(layer: QuantLinear) -> LoweredLinear:
    encoding, weight = _encoding(layer.input_quantizer), _weight(layer.weight_quantizer, layer.weight)
    reason = _reason_of_operand("input", encoding) or _reason_of_weight(weight)
    values = _values(layer.weight_quantizer, layer.weight)
    return LoweredLinear(encoding, weight, values, _bias(layer.bias, encoding, values, reason), reason)


@lowered.register
def _(layer: QuantConv2d) -> LoweredConv2d:
    encoding, weight = _encoding(layer.input_quantizer), _weight(layer.weight_quantizer, layer.weight)
    reason = _reason_of_operand("input", encoding) or _reason_of_weight(weight)
    if reason is None and isinstance(encoding, Steps):
        reason = "its input has no equal steps, so that the zeros of its padding may have no integer"
    values = _values(layer.weight_quantizer, layer.weight)
    bias = None if layer.bias is None else layer.bias.detach().clone()
    stride, padding, dilation = (tuple(number) for number in (layer.stride, layer.padding, layer.dilation))
    return LoweredConv2d(encoding, weight, values, bias, reason, stride, padding, dilation, layer.groups)


@lowered.register
def _(layer: QuantMatMul) -> LoweredMatMul:
    left, right = _encoding(layer.left_quantizer), _encoding(layer.right_quantizer)
    reason = _reason_of_operand("left operand", left, summed=-1) or _reason_of_operand(
        "right operand", right, summed=-2
    )
    if reason is None and isinstance(right, Steps):
        reason = "its right operand has no equal steps"
    if reason is None and isinstance(left, Steps) and is_wide(left):
        reason = "its left operand has no integers of 7 bits"
    return LoweredMatMul(left, right, reason)


def _encoding(quantizer: Quantizer | None) -> Encoding | None:
    return None if quantizer is None or not quantizer.enabled else encoding_of(quantizer)


def _values(quantizer: Quantizer | None, weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().clone() if quantizer is None else quantizer(weight).detach()


def _weight(quantizer: Quantizer | None, weight: torch.Tensor) -> Weight | None:
    encoding = _encoding(quantizer)
    if quantizer is None or not isinstance(encoding, Affine):
        return None
    offset = encoding.offset
    integers = (quantizer.encode(weight) - offset).to(torch.int8)
    numbers = (encoding.scale, encoding.zero_point - offset)
    scale, zero_point = (number.flatten().expand(len(weight)).clone() for number in numbers)
    return Weight(integers, scale, zero_point)


def _bias(
    bias: nn.Parameter | None, encoding: Encoding | None, values: torch.Tensor, reason: str | None
) -> torch.Tensor | None:
    """``b - shift · Σ W``: the shift of the input's format, folded once."""
    if reason is not None or not isinstance(encoding, Steps) or encoding.shift == 0:
        return None if bias is None else bias.detach().clone()
    shift = encoding.shift * values.double().sum(dim=1)
    return (-shift if bias is None else bias.double() - shift).to(values.dtype)


def _reason_of_weight(weight: Weight | None) -> str | None:
    return None if weight is not None else "its weight is float, or has no equal steps"


def _reason_of_operand(name: str, encoding: Encoding | None, summed: int | None = None) -> str | None:
    """Why an operand has no integers that can be summed.

    Args:
        name: for the sentence.
        encoding: of the operand.
        summed: axis of the sum, counted from the end, where scales may vary along the others; None where all of the
            operand has one.
    """
    if encoding is None:
        return f"its {name} is float"
    if isinstance(encoding, Steps):
        return None if encoding.parts else f"its {name} has no integers of 8 bits"
    shape = encoding.scale.shape
    if encoding.scale.numel() == 1:
        return None
    if summed is None:
        return f"its {name} has more than one scale"
    return None if len(shape) < -summed or shape[summed] == 1 else f"the scale of its {name} changes along the sum"
