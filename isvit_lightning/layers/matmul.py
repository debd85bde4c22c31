"""Matrix product of two activations, each behind a quantizer."""

import torch
from torch import nn

from isvit_lightning.quantizers import Quantizer


class QuantMatMul(nn.Module):
    """``Q(a) @ Q(b)``.

    Args:
        left_quantizer: quantizer of ``a``.
        right_quantizer: quantizer of ``b``.
    """

    def __init__(self, left_quantizer: Quantizer, right_quantizer: Quantizer) -> None:
        super().__init__()
        self.left_quantizer = left_quantizer
        self.right_quantizer = right_quantizer

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Product of ``a (…, n, k)`` and ``b (…, k, m)``."""
        return torch.matmul(self.left_quantizer(a), self.right_quantizer(b))
