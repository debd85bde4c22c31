"""Weights that are rounded layer by layer, while those that are still float make up for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantConv2d, QuantLinear
from isvit_lightning.quantizers import Quantizer, Site
from isvit_lightning.stages.compensation import round_columns
from isvit_lightning.stages.losses import Surroundings
from isvit_lightning.stages.losses.means import groups_of
from isvit_lightning.stages.trainables import (
    Group,
    QuantLayer,
    StraightThrough,
    Trainables,
    UnitTrainables,
    quantized_layers,
)
from isvit_lightning.system.processes import sum_over_processes


@dataclass(frozen=True)
class RoundInTurn(Trainables):
    """Weights and biases in float; then one layer after another is rounded, and what is left is tuned on.

    The first steps tune all weights of a unit in float. Then its first layer is rounded column by column, later columns
    making up for the errors of earlier ones (GPTQ, arXiv 2210.17323) on what the layer reads in the quantized network;
    the weights behind it are tuned on to make up for the rest, until the next layer's turn. No straight-through
    gradient passes a rounding, so that no weight is carried over a threshold by the images that are seen.

    Args:
        rate: initial learning rate of Adam, anew for each turn, in which it falls to zero along a cosine.
        relative: whether the rate is relative to the root mean square of each weight, see :class:`StraightThrough`.
        first: share of the steps before the first layer is rounded; the others are shared equally by the turns.
        images: calibration images that show what a layer reads.
        damping: what is added to the diagonal of the moments of a layer's input, as a share of their mean.

    Raises:
        IsvitError: a number is out of its range.
    """

    rate: float = 4e-3
    relative: bool = True
    first: float = 0.4
    images: int = 256
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not (self.rate > 0 and 0 < self.first < 1 and self.images >= 1 and self.damping > 0):
            raise IsvitError(
                f"RoundInTurn has {self}, expected a positive rate and damping, first between 0 and 1 and "
                "images of 1 or more: change trainables under model.recipe.steps."
            )

    @override
    def of(self, unit: nn.Module, compiled: bool) -> UnitTrainables:
        turns = [
            Turn(layer, layer.weight_quantizer)
            for layer in quantized_layers(unit)
            if layer.weight_quantizer is not None and layer.weight_quantizer.enabled
        ]
        for turn in turns:
            turn.quantizer.enabled = False
        return _InTurn(self, StraightThrough(self.rate, self.relative).of(unit, compiled).groups, turns)


@dataclass(frozen=True)
class Turn:
    """A layer that is to be rounded.

    Args:
        layer: the layer.
        quantizer: of its weight.
    """

    layer: QuantLayer
    quantizer: Quantizer


class _InTurn(UnitTrainables):
    """The turns of one unit.

    Args:
        choice: rate, shares and damping.
        groups: all weights and biases with their rates.
        turns: the layers that are to be rounded, in order.
    """

    def __init__(self, choice: RoundInTurn, groups: Sequence[Group], turns: Sequence[Turn]) -> None:
        super().__init__(groups)
        self._choice, self._turns, self._done = choice, list(turns), 0

    @override
    def phase(self, step: int, steps: int) -> tuple[int, int]:
        bounds = sorted({0, *self._starts(steps), steps})
        number = max(index for index, bound in enumerate(bounds) if bound <= step)
        return step - bounds[number], bounds[number + 1] - bounds[number]

    @override
    def advance(self, step: int, steps: int, around: Surroundings) -> None:
        self._round(sum(start <= step for start in self._starts(steps)), around)

    @override
    def finish(self, around: Surroundings) -> None:
        self._round(len(self._turns), around)

    @override
    def harden(self) -> None:
        for turn in self._turns:
            turn.quantizer.enabled = True

    def _starts(self, steps: int) -> list[int]:
        """The step before which each layer is rounded; with few steps, several have the same."""
        first, count = max(1, round(self._choice.first * steps)), len(self._turns)
        return [first + (steps - first) * number // count for number in range(count)]

    def _round(self, count: int, around: Surroundings) -> None:
        """Round the first ``count`` layers, those that are not yet."""
        for turn in self._turns[self._done : count]:
            moment = input_moment(turn.layer, around, self._choice.images)
            round_layer(turn, moment, self._choice.damping)
            self.groups = [_without(group, turn.layer.weight) for group in self.groups]
        self._done = count
        self.groups = [group for group in self.groups if group.tensors]


def _without(group: Group, weight: torch.Tensor) -> Group:
    return replace(group, tensors=[tensor for tensor in group.tensors if tensor is not weight])


@torch.no_grad()
def round_layer(turn: Turn, moment: torch.Tensor | None, damping: float) -> None:
    """Choose the grid of a layer's weight, and put the weight on it.

    Args:
        turn: the layer.
        moment: of its input, see :func:`input_moment`; None rounds to nearest.
        damping: as a share of the mean moment.
    """
    layer, quantizer = turn.layer, turn.quantizer
    quantizer.calibrate(Site(layer.weight, layer, "weight"))
    form, grid, n_codes = quantizer.format, quantizer.grid, quantizer.n_codes
    weight: torch.Tensor = layer.weight.detach()
    if moment is not None:
        wide = tuple(number.double().reshape(-1, 1) for number in grid)
        rounded = round_columns(
            weight.flatten(1), moment, lambda column: form.reconstruct(column, wide, n_codes), damping
        )
        weight = rounded.view_as(weight).to(grid[0].dtype)
    layer.weight.copy_(form.reconstruct(weight, grid, n_codes))


@torch.no_grad()
def input_moment(layer: QuantLayer, around: Surroundings, images: int) -> torch.Tensor | None:
    """Sum of ``x xᵀ`` over the quantized inputs ``x`` of a layer, ``(columns, columns)`` in float64.

    Args:
        layer: a layer of the unit.
        around: the unit on its inputs; all processes that share the images call it at once.
        images: the first of the calibration images that are used.

    Returns:
        The sum over all processes; None for a convolution whose patches overlap or whose channels are grouped, for
        which it would be as large as all its patches.
    """
    if isinstance(layer, QuantConv2d) and not _is_patch_projection(layer):
        return None
    columns = layer.weight[0].numel()
    sums: list[torch.Tensor] = []

    def add(_layer: nn.Module, args: tuple[torch.Tensor]) -> None:
        x = args[0] if layer.input_quantizer is None else layer.input_quantizer(args[0])
        rows = _rows(layer, x)
        sums[-1] += (rows.T @ rows).double()

    places = torch.arange(len(around.targets))
    handle = layer.register_forward_pre_hook(add)
    try:
        for group in groups_of(around, places[around.numbers(places) < images]):
            sums.append(torch.zeros(columns, columns, dtype=torch.float64, device=around.device))
            for rows in torch.split(group, around.chunk):
                around.outputs(rows)
    finally:
        handle.remove()
    # A process may carry none of the images.
    total = sum(sums, torch.zeros(columns, columns, dtype=torch.float64, device=around.device))
    if around.processes > 1:
        sum_over_processes(total)
    return total


def _is_patch_projection(layer: QuantConv2d) -> bool:
    return layer.groups == 1 and tuple(layer.stride) == tuple(layer.weight.shape[2:]) and not any(layer.padding)


def _rows(layer: QuantLayer, x: torch.Tensor) -> torch.Tensor:
    """Inputs of a layer as ``(rows, columns)`` of its weight."""
    if isinstance(layer, QuantLinear):
        return x.flatten(0, -2)
    patches = F.unfold(x, layer.weight.shape[2:], stride=layer.stride)
    return patches.transpose(1, 2).flatten(0, 1)
