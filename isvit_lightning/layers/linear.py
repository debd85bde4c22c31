"""Linear layer with a quantizer before its input and one before its weight."""

import torch
import torch.nn.functional as F
from torch import nn

from isvit_lightning.quantizers import Quantizer


class QuantLinear(nn.Module):
    """``y = Q(x) · Q(W)ᵀ + b`` for inputs ``(…, in_features)``.

    Args:
        linear: the float layer; its parameters are taken over, not copied.
        input_quantizer: quantizer of ``x``.
        weight_quantizer: quantizer of ``W (out_features, in_features)``.

    Attributes:
        held_weight: quantized weight to multiply by, where one was computed before; None quantizes anew.
    """

    def __init__(self, linear: nn.Linear, input_quantizer: Quantizer, weight_quantizer: Quantizer) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = linear.weight
        self.bias = linear.bias
        self.input_quantizer = input_quantizer
        self.weight_quantizer = weight_quantizer
        self.held_weight: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(…, in_features)`` to ``(…, out_features)``."""
        weight = self.weight_quantizer(self.weight) if self.held_weight is None else self.held_weight
        return F.linear(self.input_quantizer(x), weight, self.bias)
