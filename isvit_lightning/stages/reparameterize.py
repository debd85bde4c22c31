"""Stage 2: per-channel scales move out of the quantizer into LayerNorm and the next layer (I&S-ViT eq. 15-16)."""

from typing import Literal

import torch
from torch import nn

from isvit_lightning.networks import NormLinearPair
from isvit_lightning.quantizers import PerTensor, UniformQuantizer


@torch.no_grad()
def reparameterize(
    pair: NormLinearPair, statistic: Literal["mean", "median"] = "mean", round_zero_point: bool = True
) -> None:
    """Fold the per-channel grid of ``pair.linear``'s input into the pair and give it one per-tensor grid.

    With per-channel scales ``s`` and zero points ``z``, their statistics ``s̃`` and ``z̃``, ``r = s / s̃`` and
    ``b = s̃ (z̃ - z)``, the norm's output becomes ``x / r - b`` and the layer's weight ``W r`` with bias
    ``+ (W r) b``. A whole ``z̃`` makes this exact: every element keeps its code up to the shift of its zero point.

    Args:
        pair: the pair; its input quantizer must be uniform, per channel and calibrated.
        statistic: mean, or median, which outlier channels do not drag.
        round_zero_point: round ``z̃`` to a whole number in ``[0, 2**bits - 1]``.
    """
    old = pair.linear.input_quantizer
    if not isinstance(old, UniformQuantizer):
        raise TypeError(f"{pair.name}: stage 2 needs a uniform input quantizer, got {type(old).__name__}")
    old.require_calibrated()
    scale, zero = old.scale, old.zero_point
    new_scale, new_zero = (scale.mean(), zero.mean()) if statistic == "mean" else (scale.median(), zero.median())
    if round_zero_point:
        new_zero = new_zero.round().clamp(0, old.n_codes - 1)
    ratio, shift = scale / new_scale, new_scale * (new_zero - zero)

    pair.norm.weight.div_(ratio)
    pair.norm.bias.div_(ratio).sub_(shift)
    if pair.pad_value is not None:
        pair.pad_value.div_(ratio).sub_(shift)
    pair.linear.weight.mul_(ratio)
    moved = pair.linear.weight @ shift
    bias: nn.Parameter | None = pair.linear.bias
    if bias is None:
        pair.linear.bias = nn.Parameter(moved, requires_grad=False)
    else:
        bias.add_(moved)

    new = UniformQuantizer(old.bits, PerTensor(), old.role, old.search).to(scale)
    new.scale.copy_(new_scale)
    new.zero_point.copy_(new_zero)
    new.refresh()
    new.enabled, new.frozen = old.enabled, old.frozen
    pair.linear.input_quantizer = new
