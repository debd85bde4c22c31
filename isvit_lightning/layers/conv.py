"""Convolution with a quantizer before its weight and one before its input."""

import torch
import torch.nn.functional as F
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import Operand, Quantizer


class QuantConv2d(nn.Module):
    """``y = conv(Q(x), Q(W)) + b`` for maps ``(batch, channels, height, width)``.

    Padding comes behind the quantizer and stays zero.

    Args:
        conv: the float layer; its parameters are taken over, not copied.
        input_quantizer: quantizer of ``x``; None leaves it float.
        weight_quantizer: quantizer of ``W (out_channels, in_channels, kernel, kernel)``; None leaves it float.

    Raises:
        IsvitError: padding given as a word other than zeros.
    """

    channels_last = False

    def __init__(self, conv: nn.Conv2d, input_quantizer: Quantizer | None, weight_quantizer: Quantizer | None) -> None:
        super().__init__()
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise IsvitError(f"A convolution with padding {conv.padding!r} is not supported; expected numbers.")
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.weight = conv.weight
        self.bias = conv.bias
        self.input_quantizer = input_quantizer
        self.weight_quantizer = weight_quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, in_channels, height, width)`` to ``(batch, out_channels, height', width')``."""
        weight = self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        return self._convolve(x if self.input_quantizer is None else self.input_quantizer(x), weight, self.bias)

    def product(self, operand: Operand, values: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
        """The convolution without bias, with ``values`` as one operand and ``partner`` as the other."""
        return self._convolve(partner, values, None) if operand == "weight" else self._convolve(values, partner, None)

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
