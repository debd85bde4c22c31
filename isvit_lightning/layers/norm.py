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


def give_affine(norm: nn.LayerNorm, like: torch.Tensor) -> None:
    """Give ``norm`` a weight of ones and a bias of zeros where it has none, which changes nothing.

    Args:
        norm: changed in place.
        like: a tensor of the device and type that they are to have.
    """
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        if getattr(norm, name) is None:
            numbers = like.new_full(norm.normalized_shape, value)
            norm.register_parameter(name, nn.Parameter(numbers, requires_grad=False))
    norm.elementwise_affine = True
