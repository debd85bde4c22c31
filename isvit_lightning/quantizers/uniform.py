"""Uniform affine quantizer (I&S-ViT, arXiv 2311.10126, eq. 7-9)."""

import math
from typing import Any

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers.base import Quantizer
from isvit_lightning.quantizers.granularity import Granularity, PerTensor
from isvit_lightning.quantizers.role import Role
from isvit_lightning.quantizers.search import RangeSearch, percentile_search, token_weights


class _UniformPerTensor(torch.autograd.Function):
    """Round, clamp to ``[low, high]`` and scale.

    The gradient of the tensor is 1 inside the range and 0 outside; that of the scale is ``code - x / s`` inside and the
    clamped code outside, the code counted from the zero point (LSQ, arXiv 1902.08153, eq. 3).
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, scale: torch.Tensor, low: float, high: float) -> torch.Tensor:
        values = torch.div(tensor, scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(tensor, scale, values if ctx.needs_input_grad[1] else None)
        ctx.bounds = (low, high)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        tensor, scale, values = ctx.saved_tensors
        low, high = ctx.bounds
        # Half a step beyond the outer codes.
        low, high = math.ceil(low) - 0.5, math.floor(high) + 0.5
        if tensor.device.type == "cpu" and not torch.compiler.is_compiling():
            # One fused pass: hardtanh's gradient is 1 strictly between its bounds. They are plain numbers, for which an
            # accelerator would have to wait.
            step = float(scale)
            inside = torch.ops.aten.hardtanh_backward(grads[0], tensor, low * step, high * step)
        else:
            between = (tensor > scale * low) & (tensor < scale * high)
            inside = torch.where(between, grads[0], torch.zeros_like(grads[0]))
        slope = None
        if values is not None:
            slope = (_dot(grads[0], values) - _dot(inside, tensor)) / scale
        return inside, slope, None, None


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of products, without a temporary of their size."""
    return torch.dot(a.reshape(-1), b.reshape(-1))


class _UniformPerChannel(torch.autograd.Function):
    """The same with ``scale``, ``low`` and ``high`` that broadcast against the tensor, and a scale without gradient."""

    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, scale: torch.Tensor, low: torch.Tensor, high: torch.Tensor
    ) -> torch.Tensor:
        steps = torch.div(tensor, scale)
        if ctx.needs_input_grad[0]:
            # Half a step beyond the outer codes is at -1 and 1.
            first, last = low.ceil() - 0.5, high.floor() + 0.5
            ctx.save_for_backward(torch.sub(steps, (first + last) / 2).div_((last - first) / 2))
        steps = torch.maximum(steps.round_(), low)
        return torch.minimum(steps, high, out=steps).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (position,) = ctx.saved_tensors
        # The fused form of a mask, and the gradient without one: selecting by booleans is many times slower on a CPU.
        return torch.ops.aten.hardtanh_backward(grads[0], position, -1.0, 1.0), None, None, None


class UniformQuantizer(Quantizer):
    """``x̂ = s · (clamp(round(x / s) + z, 0, n_codes - 1) - z)``.

    Args:
        bits: width of a code, 2 to 8.
        granularity: which elements share ``s`` and ``z``.
        role: what the quantized tensor is.
        search: how ``s`` and ``z`` are chosen from samples.

    Attributes:
        scale: ``s``, shape ``granularity.shape``.
        zero_point: ``z``, the code of real zero, held as a float tensor of the same shape. A whole number in
            ``[0, n_codes - 1]``, except in a reproduction of published arithmetic.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(
        self,
        bits: int,
        granularity: Granularity | None = None,
        role: Role = Role.OTHER,
        search: RangeSearch | None = None,
    ) -> None:
        super().__init__(bits, granularity, role)
        self.search = search or RangeSearch()
        self._register_grid("scale", "zero_point")
        self._float_bounds = (0.0, 0.0)

    def _bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        return -self.zero_point, (self.n_codes - 1) - self.zero_point

    def refresh(self) -> None:
        """Derive the plain Python state from the buffers; call it after changing them from outside."""
        super().refresh()
        # Plain numbers here spare every training step a transfer from the accelerator.
        zero_point = float(self.zero_point) if self.zero_point.dim() == 0 else 0.0
        self._float_bounds = (-zero_point, self.n_codes - 1 - zero_point)

    def encode(self, tensor: torch.Tensor) -> torch.Tensor:
        """Codes of ``tensor`` (int32, same shape).

        Raises:
            IsvitError: the zero point is fractional, so that codes are no integers.
        """
        self.require_calibrated()
        if not torch.equal(self.zero_point, self.zero_point.round()):
            raise IsvitError(
                "A fractional zero point has no integer codes; set model.method.round_zero_point to true to get them."
            )
        low, high = self._bounds()
        steps = torch.minimum(torch.maximum(torch.div(self._widened(tensor), self.scale).round_(), low), high)
        return (steps + self.zero_point).to(torch.int32)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Grid values of ``codes``, same shape."""
        self.require_calibrated()
        return (codes.to(self.scale.dtype) - self.zero_point) * self.scale

    def fake_quantize(self, tensor: torch.Tensor) -> torch.Tensor:
        """Grid values of ``tensor``; gradient 1 inside the range, 0 outside."""
        result: torch.Tensor
        if self.scale.dim() == 0:
            result = _UniformPerTensor.apply(tensor, self.scale, *self._float_bounds)
        else:
            result = _UniformPerChannel.apply(tensor, self.scale, *self._bounds())
        return result

    def _choose_grid(self, samples: torch.Tensor) -> None:
        samples = samples.float() if samples.dtype in (torch.float16, torch.bfloat16) else samples
        groups = self.granularity.group(samples)
        weights = self._group_weights(samples) if self.search.per_token else None
        scale, zero_point = percentile_search(groups, self.n_codes, self.search, weights)
        self.scale.copy_(scale.reshape(self.granularity.shape))
        self.zero_point.copy_(zero_point.reshape(self.granularity.shape))

    def _group_weights(self, samples: torch.Tensor) -> torch.Tensor:
        weights = token_weights(samples)
        # One scale for all: a weight for each token will do, as its channels lie side by side.
        return self.granularity.group(
            weights if isinstance(self.granularity, PerTensor) else weights.expand_as(samples)
        )
