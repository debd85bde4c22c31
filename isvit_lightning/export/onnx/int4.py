"""Weights of 4 bits, activations in float: small files."""

import copy

import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.onnx import ops
from isvit_lightning.layers import QuantConv2d, QuantLinear
from isvit_lightning.networks import quantizers, switch
from isvit_lightning.quantizers import Quantizer

_SHORTEST, _LONGEST = 16, 128
"""Weights that share a written scale: powers of two that engines have products for."""
_CODES = 16


class CodedWeight(nn.Module):
    """A weight as codes with scale and zero point for each output channel, repeated for each block of a row.

    ONNX Runtime keeps the codes of a linear layer packed where each block of its rows has a scale; the values are those
    of one scale for the row.

    Args:
        layer: calibrated, with a weight of equal steps.
    """

    def __init__(self, layer: QuantLinear | QuantConv2d) -> None:
        super().__init__()
        quantizer = layer.weight_quantizer
        affine = _affine(quantizer)
        if quantizer is None or affine is None:
            raise TypeError("Expected a weight of equal steps.")
        codes = quantizer.encode(layer.weight).to(torch.uint8)
        scale, zero_point = (number.flatten().expand(len(codes)).clone() for number in affine)
        self.axis, self.block = 0, 0
        if isinstance(layer, QuantLinear):
            codes, self.axis = codes.t().contiguous(), 1
            self.block = _block(len(codes))
        if self.block:
            self.axis, blocks = 0, len(codes) // self.block
            scale, zero_point = (number.expand(blocks, -1).contiguous() for number in (scale, zero_point))
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point.to(torch.uint8))

    def forward(self) -> torch.Tensor:
        """The weight in float; that of a linear layer transposed."""
        codes, scale, zero_point = (self.get_buffer(name) for name in ("codes", "scale", "zero_point"))
        return ops.dequantize(codes, scale, zero_point, self.axis, self.block)


def _block(row: int) -> int:
    """Largest power of two that divides ``row`` and engines have products for; 0 for none."""
    block = min(row & -row, _LONGEST)
    return block if block >= _SHORTEST else 0


class _Linear(nn.Module):
    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        self.weight, self.bias = CodedWeight(layer), layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = ops.matmul(x, self.weight())
        return y if self.bias is None else y + self.bias


class _Conv2d(nn.Module):
    def __init__(self, layer: QuantConv2d) -> None:
        super().__init__()
        self.weight, self.bias = CodedWeight(layer), layer.bias
        self.geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(x, self.weight(), self.bias, *self.geometry)


def weight_only(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """What is written, and the same network with quantized weights and float activations.

    Args:
        model: calibrated.

    Raises:
        IsvitError: a weight has more than 4 bits, or no equal steps.
    """
    simulated = copy.deepcopy(model)
    switch(simulated, weights=True, activations=False)
    network = copy.deepcopy(simulated)
    for path, layer in list(network.named_modules()):
        if isinstance(layer, QuantLinear | QuantConv2d) and layer.weight_quantizer is not None:
            _require_narrow(layer.weight_quantizer, path)
            parent, _, name = path.rpartition(".")
            written = _Linear(layer) if isinstance(layer, QuantLinear) else _Conv2d(layer)
            setattr(network.get_submodule(parent), name, written)
    for path in quantizers(network):
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, None if name != "norm" else nn.Identity())
    return network.eval(), simulated


def _affine(quantizer: Quantizer | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    if quantizer is None or not quantizer.format.has_codes(quantizer.grid):
        return None
    return quantizer.format.affine(quantizer.grid)


def _require_narrow(quantizer: Quantizer, path: str) -> None:
    if quantizer.n_codes > _CODES:
        raise IsvitError(
            f"The weight of {path} has {quantizer.bits} bits, expected at most 4, as ONNX has no type for others but 8:"
            " choose the format onnx, or calibrate with model.bits.weight 4."
        )
    if _affine(quantizer) is None:
        raise IsvitError(
            f"The weight of {path} has no scale and whole zero point, expected equal steps: choose the format onnx."
        )
