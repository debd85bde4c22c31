"""LayerNorm with a quantizer before its input."""

import torch
from torch import nn

from isvit_lightning.quantizers import Quantizer


class QuantLayerNorm(nn.LayerNorm):
    """``y = norm(Q(x))`` for tokens ``(…, channels)``.

    Args:
        norm: the float layer; its parameters are taken over, not copied.
        input_quantizer: quantizer of ``x``.
    """

    def __init__(self, norm: nn.LayerNorm, input_quantizer: Quantizer) -> None:
        super().__init__(norm.normalized_shape, norm.eps, elementwise_affine=False)
        self.elementwise_affine = norm.elementwise_affine
        self.weight, self.bias = norm.weight, norm.bias
        self.input_quantizer = input_quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(…, channels)`` to the same shape."""
        return super().forward(self.input_quantizer(x))
