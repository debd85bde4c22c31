"""Uniform affine format (I&S-ViT, arXiv 2311.10126, eq. 7-9)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from typing_extensions import override

from isvit_lightning.quantizers.formats.base import Format, Grid
from isvit_lightning.quantizers.granularity import Granularity, PerTensor


@dataclass(frozen=True)
class Uniform(Format):
    """``x̂ = s · (clamp(round(x / s) + z, 0, n_codes - 1) - z)``.

    ``z``, the code of real zero, is a whole number in ``[0, n_codes - 1]`` held as a float, except in a reproduction of
    published arithmetic.
    """

    numbers: ClassVar[tuple[str, ...]] = ("scale", "zero_point")
    fallback: ClassVar[tuple[float, ...]] = (1.0, 0.0)

    @override
    def grids(self, low: torch.Tensor, high: torch.Tensor, n_codes: int, free: tuple[float, ...]) -> Iterator[Grid]:
        """The grid whose first and last value are the ends of the range.

        A constant group gets the range between zero and its value; a group of zeros gets zero point 0 and the mean
        scale of the other groups (1 where there is none), so that it does not distort the statistics of a fold.
        """
        flat = high <= low
        low, high = torch.where(flat, low.clamp(max=0), low), torch.where(flat, high.clamp(min=0), high)
        scale = (high - low) / (n_codes - 1)
        usable = scale > torch.finfo(scale.dtype).tiny
        fallback = scale[usable].mean() if bool(usable.any()) else torch.ones_like(scale)
        scale = torch.where(usable, scale, fallback)
        yield scale, torch.where(usable, torch.round(-low / scale), torch.zeros_like(scale))

    @override
    def codes(self, tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
        scale, zero_point = grid
        return torch.div(tensor, scale).round_().add_(zero_point)

    @override
    def base(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        scale, zero_point = grid
        return codes.sub_(zero_point).mul_(scale)

    @override
    def slope(self, tensor: torch.Tensor, base: torch.Tensor, grid: Grid) -> torch.Tensor:
        return torch.ones_like(tensor)

    @override
    def reconstruct(self, tensor: torch.Tensor, grid: Grid, n_codes: int) -> torch.Tensor:
        scale, zero_point = grid
        steps = torch.div(tensor, scale).round_()
        if zero_point.numel() == 1:
            low = -float(zero_point)
            return steps.clamp_(low, low + n_codes - 1).mul_(scale)
        steps = torch.maximum(steps, -zero_point)
        return torch.minimum(steps, (n_codes - 1) - zero_point, out=steps).mul_(scale)

    @override
    def constants(self, grid: Grid, n_codes: int) -> tuple[float, ...]:
        # Plain numbers here spare every training step a transfer from the accelerator.
        zero_point = float(grid[1]) if grid[1].dim() == 0 else 0.0
        return -zero_point, n_codes - 1 - zero_point

    @override
    def fake_quantize(
        self, tensor: torch.Tensor, grid: Grid, n_codes: int, constants: tuple[float, ...]
    ) -> torch.Tensor:
        result: torch.Tensor
        scale, zero_point = grid
        if scale.dim() == 0:
            result = _UniformPerTensor.apply(tensor, scale, *constants)
        else:
            result = _UniformPerChannel.apply(tensor, scale, -zero_point, (n_codes - 1) - zero_point)
        return result

    @override
    def learned(self, granularity: Granularity) -> tuple[str, ...]:
        return ("scale",) if isinstance(granularity, PerTensor) else ()

    @override
    def has_codes(self, grid: Grid) -> bool:
        return bool(torch.equal(grid[1], grid[1].round()))

    @override
    def affine(self, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        return grid[0], grid[1]


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
