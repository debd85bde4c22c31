"""Matrix product of two activations, each behind a quantizer."""

import torch
from torch import nn

from isvit_lightning.quantizers import Operand, Quantizer


class QuantMatMul(nn.Module):
    """``Q(a) @ Q(b)``.

    Args:
        left_quantizer: quantizer of ``a``; None leaves it float.
        right_quantizer: quantizer of ``b``; None leaves it float.
    """

    channels_last = False

    def __init__(self, left_quantizer: Quantizer | None, right_quantizer: Quantizer | None) -> None:
        super().__init__()
        self.left_quantizer = left_quantizer
        self.right_quantizer = right_quantizer

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Product of ``a (…, n, k)`` and ``b (…, k, m)``."""
        left = a if self.left_quantizer is None else self.left_quantizer(a)
        return torch.matmul(left, b if self.right_quantizer is None else self.right_quantizer(b))

    def product(self, operand: Operand, values: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
        """The product with ``values`` as one operand and ``partner`` as the other."""
        return torch.matmul(values, partner) if operand == "left" else torch.matmul(partner, values)
