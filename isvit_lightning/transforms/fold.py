"""Moving scales and zero points by channel out of a quantizer into LayerNorm and the next layer (I&S-ViT eq. 15-16)."""

from typing import Any, Literal

import torch
from torch import nn

from isvit_lightning.layers import QuantLinear, give_affine
from isvit_lightning.networks import Wire
from isvit_lightning.quantizers import PerChannel, PerTensor, Quantizer, Spec, Uniform

Statistic = Literal["mean", "median", "mad"]
_FAR = 3
"""Median absolute deviations beyond which a channel is an outlier."""


def is_foldable(wire: Wire) -> bool:
    """Whether the only reader of ``wire`` has an input quantizer that is uniform by channel."""
    (reader, *others) = wire.readers
    if others or not isinstance(reader, QuantLinear) or reader.input_quantizer is None:
        return False
    quantizer = reader.input_quantizer
    return isinstance(quantizer.format, Uniform) and quantizer.granularity == PerChannel(reader.in_features)


@torch.no_grad()
def fold(wire: Wire, statistic: Statistic = "mean", round_zero_point: bool = True) -> None:
    """Fold the per-channel grid of the reader's input into norm and reader, and give it one per-tensor grid.

    With per-channel scales ``s`` and zero points ``z``, their statistics ``s̃`` and ``z̃``, ``r = s / s̃`` and
    ``b = s̃ (z̃ - z)``, the norm's output becomes ``x / r - b`` and the layer's weight ``W r`` with bias
    ``+ (W r) b``. A whole ``z̃`` makes this exact: every element keeps its code up to the shift of its zero point.

    Args:
        wire: one for which :func:`is_foldable` holds, calibrated.
        statistic: mean; median, which outlier channels do not drag; or mad, the mean of the channels whose scale is no
            further than three median absolute deviations from the median (our reading of DopQ-ViT, arXiv 2408.03291).
        round_zero_point: round ``z̃`` to a whole number in ``[0, 2**bits - 1]``.
    """
    reader: Any = wire.readers[0]
    old: Quantizer = reader.input_quantizer
    old.require_calibrated()
    scale, zero = old.grid
    new_scale, new_zero = _centre(scale, zero, statistic)
    if round_zero_point:
        new_zero = new_zero.round().clamp(0, old.n_codes - 1)
    move(wire, scale / new_scale, new_scale * (new_zero - zero))

    new = Quantizer(Spec(old.format, old.bits, PerTensor(), old.role), old.search).to(scale)
    for buffer, number in zip(new.grid, (new_scale, new_zero), strict=True):
        buffer.copy_(number)
    new.refresh()
    new.enabled = old.enabled
    reader.input_quantizer = new


def _centre(scale: torch.Tensor, zero: torch.Tensor, statistic: Statistic) -> tuple[torch.Tensor, torch.Tensor]:
    """What stands for the scales and zero points ``(channels,)`` of all channels."""
    if statistic == "median":
        return scale.median(), zero.median()
    if statistic == "mad":
        deviation = (scale - scale.median()).abs()
        near = deviation <= _FAR * deviation.median()
        return scale[near].mean(), zero[near].mean()
    return scale.mean(), zero.mean()


@torch.no_grad()
def move(wire: Wire, ratio: torch.Tensor, shift: torch.Tensor) -> None:
    """Make the norm's output ``x`` to ``x / ratio - shift``, and its only reader undo that.

    A norm without weight or bias gets them.

    Args:
        wire: a norm with one linear reader.
        ratio: of each channel, ``(channels,)``.
        shift: of each channel, ``(channels,)``.
    """
    reader: Any = wire.readers[0]
    give_affine(wire.norm, reader.weight)
    wire.norm.weight.div_(ratio)
    wire.norm.bias.div_(ratio).sub_(shift)
    if wire.pad_value is not None:
        wire.pad_value.div_(ratio).sub_(shift)
    reader.weight.mul_(ratio)
    moved = reader.weight @ shift
    if reader.bias is None:
        reader.bias = nn.Parameter(moved, requires_grad=False)
    else:
        reader.bias.add_(moved)
