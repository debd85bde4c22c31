"""SULQ, the shift-uniform-log2 quantizer for attention probabilities (I&S-ViT, arXiv 2311.10126, eq. 13-14)."""

from typing import Any

import torch

from isvit_lightning.quantizers.base import Quantizer
from isvit_lightning.quantizers.granularity import Granularity
from isvit_lightning.quantizers.role import Role

PUBLISHED_ETAS = (0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Candidates of the published code (method page, section 2.2)."""
POWER_OF_TWO_ETAS = tuple(2.0**-k for k in range(21))
"""Candidates with an exact zero: ``2**e - eta`` vanishes where ``e = log2(eta)``."""

_SEARCH_SAMPLES = 2**20


class _SulqFunction(torch.autograd.Function):
    """``2**round(code · step + offset) - eta``; the gradient is ``(x̂ + eta) / (x + eta)`` inside, 0 outside."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        eta: torch.Tensor,
        offset: torch.Tensor,
        step: torch.Tensor,
        n_codes: int,
    ) -> torch.Tensor:
        codes = torch.add(tensor, eta).log2_().sub_(offset).div_(step).round_()
        shifted = codes.clamp(0, n_codes - 1).mul_(step).add_(offset).round_().exp2_()
        ctx.save_for_backward(tensor, codes, shifted, eta)
        ctx.n_codes = n_codes
        return shifted - eta

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        tensor, codes, shifted, eta = ctx.saved_tensors
        slope = torch.add(tensor, eta)
        slope = torch.div(shifted, slope, out=slope).mul_(grads[0])
        # hardtanh's gradient keeps `slope` strictly between its bounds: the fused form of a mask.
        return torch.ops.aten.hardtanh_backward(slope, codes, -0.5, ctx.n_codes - 0.5), None, None, None, None


class SulqQuantizer(Quantizer):
    """Quantizes ``log2(x + eta)`` uniformly and rounds the exponent, so that a grid value is a shift minus ``eta``.

    Args:
        bits: width of a code, 2 to 8.
        granularity: which elements share a grid.
        role: what the quantized tensor is.
        etas: candidates for ``eta``; the one with the smallest mean squared error is kept.
        extra_codes: 1 reproduces the published code, which searches with ``2**bits`` codes and spends one more.

    Attributes:
        eta: shift, shape ``granularity.shape``.
        offset: smallest ``log2(x + eta)`` seen.
        step: distance of neighbouring codes in ``log2``.
    """

    non_negative = True
    eta: torch.Tensor
    offset: torch.Tensor
    step: torch.Tensor

    def __init__(
        self,
        bits: int,
        granularity: Granularity | None = None,
        role: Role = Role.ATTN_PROB,
        etas: tuple[float, ...] = POWER_OF_TWO_ETAS,
        extra_codes: int = 0,
    ) -> None:
        super().__init__(bits, granularity, role, extra_codes)
        self.etas = etas
        self._register_grid("eta", "offset", "step")

    def encode(self, tensor: torch.Tensor) -> torch.Tensor:
        """Codes of non-negative ``tensor`` (int32, same shape); code 0 is the smallest value."""
        self.require_calibrated()
        codes = torch.log2(self._widened(tensor) + self.eta).sub_(self.offset).div_(self.step).round_()
        return codes.clamp_(0, self.n_codes - 1).to(torch.int32)

    def exponents(self, codes: torch.Tensor) -> torch.Tensor:
        """Integer exponents ``e`` of ``codes``: the grid value is ``2**e - eta``."""
        return (codes.to(self.eta.dtype) * self.step + self.offset).round()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Grid values of ``codes``, same shape."""
        self.require_calibrated()
        return torch.exp2(self.exponents(codes)) - self.eta

    def fake_quantize(self, tensor: torch.Tensor) -> torch.Tensor:
        """Grid values of ``tensor``; gradient ``(x̂ + eta) / (x + eta)`` inside the range, 0 outside."""
        result: torch.Tensor = _SulqFunction.apply(tensor, self.eta, self.offset, self.step, self.n_codes)
        return result

    def _choose_grid(self, samples: torch.Tensor) -> None:
        groups = self.granularity.group(samples)
        low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
        thinned = groups[:, :: max(1, groups.shape[1] // _SEARCH_SAMPLES)]
        best_error = torch.full_like(low, torch.inf)
        best = [torch.ones_like(low), torch.zeros_like(low), torch.ones_like(low)]
        for candidate in self.etas:
            eta = torch.full_like(low, candidate)
            offset = torch.log2(low + eta)
            spread = torch.log2(high + eta) - offset
            # A constant tensor leaves no spread: any step represents it, 1 keeps the grid finite.
            spread = torch.where(spread > 0, spread, torch.full_like(spread, self.n_codes - 1.0))
            step = spread / (2**self.bits - 1)
            error = self._error(thinned, eta, offset, step)
            run_time_step = spread / (self.n_codes - 1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = [torch.where(better, new, old) for new, old in zip((eta, offset, run_time_step), best, strict=True)]
        for buffer, value in zip((self.eta, self.offset, self.step), best, strict=True):
            buffer.copy_(value.reshape(self.granularity.shape))

    def _error(self, groups: torch.Tensor, eta: torch.Tensor, offset: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        codes = torch.log2(groups + eta).sub_(offset).div_(step).round_().clamp_(0, 2**self.bits - 1)
        values = codes.mul_(step).add_(offset).round_().exp2_().sub_(eta)
        return values.sub_(groups).square_().mean(dim=1, keepdim=True)
