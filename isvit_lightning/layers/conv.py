"""Convolution with a quantizer before its weight, and one before its input where that is no image."""

import torch
import torch.nn.functional as F
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import Quantizer


class QuantConv2d(nn.Module):
    """``y = conv(Q(x), Q(W)) + b`` for maps ``(batch, channels, height, width)``.

    Padding comes behind the quantizer and stays zero.

    Args:
        conv: the float layer; its parameters are taken over, not copied.
        weight_quantizer: quantizer of ``W (out_channels, in_channels, kernel, kernel)``.
        input_quantizer: quantizer of ``x``; None leaves it float, as in the patch embedding, which reads the image.

    Attributes:
        held_weight: quantized weight to convolve with, where one was computed before; None quantizes anew.

    Raises:
        IsvitError: padding given as a word other than zeros.
    """

    def __init__(self, conv: nn.Conv2d, weight_quantizer: Quantizer, input_quantizer: Quantizer | None = None) -> None:
        super().__init__()
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise IsvitError(f"A convolution with padding {conv.padding!r} is not supported; expected numbers.")
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.weight = conv.weight
        self.bias = conv.bias
        self.input_quantizer = input_quantizer
        self.weight_quantizer = weight_quantizer
        self.held_weight: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, in_channels, height, width)`` to ``(batch, out_channels, height', width')``."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        weight = self.weight_quantizer(self.weight) if self.held_weight is None else self.held_weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
