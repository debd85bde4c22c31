"""Squared errors: as they are, or relative to the variance of what they are errors of."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn
from typing_extensions import override

from isvit_lightning.layers import QuantConv2d
from isvit_lightning.networks import Data
from isvit_lightning.stages.losses.loss import Loss, Surroundings, UnitLoss
from isvit_lightning.stages.passes import Rows
from isvit_lightning.system.processes import sum_over_processes

_ROWS = 16
"""Images that statistics of targets are taken of at once."""


@dataclass(frozen=True)
class SquaredError(Loss):
    """Squared error as published (I&S-ViT, arXiv 2311.10126, eq. 12)."""

    @override
    def prepare(self, around: Surroundings) -> UnitLoss:
        return UnitLoss(
            lambda outputs, wanted, _places: sum_of(
                reconstruction_loss(output, wanted[name]) for name, output in outputs.items()
            )
        )


@dataclass(frozen=True)
class NormalizedError(Loss):
    """Squared error with each token's error divided by the variance of its target.

    That is how the next LayerNorm will see it: one token of enormous activations does not outweigh all others. Where
    channels are different quantities, such as scores and shifts of boxes, the variance is that of the channel.
    """

    @override
    def prepare(self, around: Surroundings) -> UnitLoss:
        device = around.device
        if around.unit.mixed:
            by_channel = channel_variance(around.targets, device, around.processes)
            return UnitLoss(
                lambda outputs, wanted, _places: sum_of(
                    reconstruction_loss(output, wanted[name], by_channel[name]) for name, output in outputs.items()
                )
            )
        by_token = token_variance(around.targets, around.unit.module)
        return UnitLoss(
            lambda outputs, wanted, places: sum_of(
                reconstruction_loss(
                    output, wanted[name], by_token[name][places].to(device) if name in by_token else None
                )
                for name, output in outputs.items()
            )
        )


def sum_of(losses: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum of at least one scalar."""
    return reduce(operator.add, losses)


def reconstruction_loss(
    output: torch.Tensor, target: torch.Tensor, variance: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared error summed over axis 1 and averaged over the others, a scalar.

    The published code's form: ``tokens`` times the mean squared error for ``(batch, tokens, channels)``.

    Args:
        output: output of the unit.
        target: output of the float unit, same shape.
        variance: what each squared error is divided by; broadcasts against them.
    """
    error = (output - target).square_()
    return (error if variance is None else error / variance).mean() * output.shape[1]


def token_variance(targets: Rows, module: nn.Module) -> Data:
    """Variance ``(images, …, 1)`` of each token of ``targets (images, …, channels)`` over its channels, by name.

    Nothing for outputs that are no tokens: logits, and the channels-first map of the patch projection.
    """
    names = [name for name, shape in targets.shapes.items() if len(shape) >= 3 and not isinstance(module, QuantConv2d)]
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for start in range(0, len(targets), _ROWS):
        rows = targets[start : start + _ROWS] if names else {}
        for name in names:
            parts[name].append(_token_variance(rows[name]))
    return {name: torch.cat(some) for name, some in parts.items()}


def _token_variance(targets: torch.Tensor) -> torch.Tensor:
    # By hand: the library's variance reads the values one by one, which is slow.
    centered = targets - targets.mean(dim=-1, keepdim=True)
    variance = centered.square_().sum(dim=-1, keepdim=True) / (targets.shape[-1] - 1)
    return variance + torch.finfo(targets.dtype).eps


def channel_variance(targets: Rows, device: torch.device, processes: int = 1) -> Data:
    """Variance ``(channels,)`` of each channel of ``targets (images, tokens, channels)``, by name.

    Args:
        targets: those of this process.
        device: of the process.
        processes: how many processes hold a share of them.
    """
    sums = {name: torch.zeros(3, shape[-1], dtype=torch.float64) for name, shape in targets.shapes.items()}
    for start in range(0, len(targets), _ROWS):
        for name, rows in targets[start : start + _ROWS].items():
            values = rows.double().flatten(0, -2).cpu()
            moments = [torch.full_like(values[0], len(values)), values.sum(dim=0), values.square().sum(dim=0)]
            sums[name] += torch.stack(moments)
    return {name: _variance(total, device, processes) for name, total in sums.items()}


def _variance(sums: torch.Tensor, device: torch.device, processes: int) -> torch.Tensor:
    """Variance from count, sum and sum of squares ``(3, channels)``."""
    if processes > 1:
        sums = sums.to(device)
        sum_over_processes(sums)
    count, total, squares = sums.cpu()
    variance = squares / count - (total / count).square()
    return (variance.clamp_min(0).float() + torch.finfo(torch.float32).eps).to(device)
