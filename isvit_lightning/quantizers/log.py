"""Logarithmic quantizers: log2 (I&S-ViT eq. 10-11) and log-sqrt2 (RepQ-ViT, arXiv 2212.08254, eq. 13)."""

from typing import Any

import torch

from isvit_lightning.quantizers.base import Quantizer
from isvit_lightning.quantizers.granularity import Granularity
from isvit_lightning.quantizers.role import Role
from isvit_lightning.quantizers.search import ACTIVATION_PERCENTILES


class _LogFunction(torch.autograd.Function):
    """``scale · 2**(-code / steps_per_octave)``; the gradient is ``x̂ / x`` inside the range, 0 outside."""

    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, scale: torch.Tensor, steps_per_octave: int, n_codes: int
    ) -> torch.Tensor:
        codes = torch.log2(tensor / scale).mul_(-steps_per_octave).round_()
        values = torch.exp2(codes.clamp(0, n_codes - 1) / -steps_per_octave) * scale
        ctx.save_for_backward(tensor, codes, values)
        ctx.n_codes = n_codes
        return values

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        tensor, codes, values = ctx.saved_tensors
        inside = (codes >= 0) & (codes <= ctx.n_codes - 1)
        return torch.where(inside, grads[0] * values / tensor, torch.zeros_like(tensor)), None, None, None


class LogQuantizer(Quantizer):
    """``code = clamp(round(-k · log2(x / s)), 0, n_codes - 1)``, ``x̂ = s · 2**(-code / k)`` for non-negative ``x``.

    Zero takes the last code, whose value is ``s · 2**(-(n_codes - 1) / k)``.

    Args:
        bits: width of a code, 2 to 8.
        granularity: which elements share ``s``.
        role: what the quantized tensor is.
        steps_per_octave: ``k``: 1 is log2, 2 is log-sqrt2.
        percentiles: candidates for ``s``, quantiles of the samples; the smallest mean squared error wins.

    Attributes:
        scale: ``s``, shape ``granularity.shape``.
    """

    non_negative = True
    scale: torch.Tensor

    def __init__(
        self,
        bits: int,
        granularity: Granularity | None = None,
        role: Role = Role.ATTN_PROB,
        steps_per_octave: int = 1,
        percentiles: tuple[float, ...] = ACTIVATION_PERCENTILES,
    ) -> None:
        super().__init__(bits, granularity, role)
        self.steps_per_octave = steps_per_octave
        self.percentiles = percentiles
        self._register_grid("scale")

    def encode(self, tensor: torch.Tensor) -> torch.Tensor:
        """Codes of non-negative ``tensor`` (int32, same shape); code 0 is the largest value."""
        self.require_calibrated()
        codes = torch.log2(self._widened(tensor) / self.scale).mul_(-self.steps_per_octave).round_()
        return codes.clamp_(0, self.n_codes - 1).to(torch.int32)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Grid values of ``codes``, same shape."""
        self.require_calibrated()
        return torch.exp2(codes.to(self.scale.dtype) / -self.steps_per_octave) * self.scale

    def fake_quantize(self, tensor: torch.Tensor) -> torch.Tensor:
        """Grid values of ``tensor``; gradient ``x̂ / x`` inside the range, 0 outside."""
        result: torch.Tensor = _LogFunction.apply(tensor, self.scale, self.steps_per_octave, self.n_codes)
        return result

    def _choose_grid(self, samples: torch.Tensor) -> None:
        groups = self.granularity.group(samples)
        count = groups.shape[1]
        tail = int((1 - min(self.percentiles)) * (count - 1)) + 1
        top = groups.topk(tail, dim=1).values
        best_error = torch.full((groups.shape[0],), torch.inf, dtype=groups.dtype, device=groups.device)
        best_scale = torch.ones_like(best_error)
        for percentile in self.percentiles:
            scale = top[:, int((1 - percentile) * (count - 1))]
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            codes = torch.log2(groups / scale.unsqueeze(1)).mul_(-self.steps_per_octave).round_()
            values = torch.exp2(codes.clamp_(0, self.n_codes - 1) / -self.steps_per_octave) * scale.unsqueeze(1)
            error = values.sub_(groups).square_().mean(dim=1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
        self.scale.copy_(best_scale.reshape(self.granularity.shape))
