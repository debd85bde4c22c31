"""Linear layer with a quantizer before its input and one before its weight."""

import torch
import torch.nn.functional as F
from torch import nn

from isvit_lightning.quantizers import Operand, Quantizer


class QuantLinear(nn.Module):
    """``y = Q(x) · Q(W)ᵀ + b`` for inputs ``(…, in_features)``.

    Args:
        linear: the float layer; its parameters are taken over, not copied.
        input_quantizer: quantizer of ``x``; None leaves it float.
        weight_quantizer: quantizer of ``W (out_features, in_features)``; None leaves it float.
    """

    channels_last = True

    def __init__(
        self, linear: nn.Linear, input_quantizer: Quantizer | None, weight_quantizer: Quantizer | None
    ) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = linear.weight
        self.bias = linear.bias
        self.input_quantizer = input_quantizer
        self.weight_quantizer = weight_quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(…, in_features)`` to ``(…, out_features)``."""
        weight = self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        return F.linear(x if self.input_quantizer is None else self.input_quantizer(x), weight, self.bias)

    def product(self, operand: Operand, values: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
        """The product without bias, with ``values`` as one operand and ``partner`` as the other."""
        return F.linear(partner, values) if operand == "weight" else F.linear(values, partner)
