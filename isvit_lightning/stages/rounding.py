"""Learned rounding of weights (AdaRound, arXiv 2004.10568; as in BRECQ, arXiv 2102.05426)."""

from dataclasses import dataclass

import torch
from torch import nn
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.stages.trainables import (
    Group,
    QuantLayer,
    Trainables,
    TrainedWeight,
    UnitTrainables,
    quantized_layers,
)

_LOW, _HIGH = -0.1, 1.1
"""The sigmoid is stretched to this interval and cut to 0 and 1, which it then reaches."""

_LEAST_SLOPE = 1e-16
"""Slopes of the penalty below this are none."""


@dataclass(frozen=True)
class AdaRound(Trainables):
    """For each weight, whether it is rounded down or up; weights themselves stay.

    A code is ``floor(W / s) + h(V)`` with ``h(V) = clip(1.2 · sigmoid(V) - 0.1, 0, 1)``; ``V`` starts where ``h`` gives
    the weight itself. The penalty ``λ Σ (1 - |2 h - 1|^β)`` drives ``h`` to 0 or 1 while ``β`` falls.

    Args:
        learning_rate: initial rate of Adam for ``V``; it falls to zero along a cosine.
        weight: ``λ``.
        warmup: share of the steps without the penalty.
        beta: ``β`` at the end of the warm-up and at the last step, between which it falls linearly.

    Raises:
        IsvitError: a number is out of its range.
    """

    learning_rate: float = 1e-3
    weight: float = 0.01
    warmup: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and self.weight >= 0 and 0 <= self.warmup < 1 and min(self.beta) > 0):
            raise IsvitError(
                f"AdaRound has {self}, expected a positive learning_rate and beta, a weight of 0 or more and a warmup "
                "from 0 to 1: change trainables under model.recipe.steps."
            )

    @override
    def of(self, unit: nn.Module, compiled: bool) -> UnitTrainables:
        """See :meth:`Trainables.of`; a compiled unit is handed its rounded weights like any other."""
        return _Rounded(self, [_LayerRounding(layer) for layer in quantized_layers(unit) if _is_quantized(layer)])


class _LayerRounding:
    """``V`` of one weight.

    Args:
        layer: its weight's grid is chosen.
    """

    def __init__(self, layer: QuantLayer) -> None:
        quantizer = layer.weight_quantizer
        affine = None if quantizer is None else quantizer.format.affine(quantizer.grid)
        if quantizer is None or affine is None:
            raise IsvitError(
                "AdaRound learns to round on a uniform grid, expected weights with the format Uniform: change "
                "model.recipe.placement.weight."
            )
        self.layer, self.quantizer = layer, quantizer
        self.scale, self.zero_point = affine
        with torch.no_grad():
            steps = layer.weight / self.scale
            self.floor = steps.floor()
            share = (steps - self.floor).clamp(1e-4, 1 - 1e-4)
            self.logits = torch.logit((share - _LOW) / (_HIGH - _LOW))

    def up(self) -> torch.Tensor:
        """``h(V)``: 1 where the weight is rounded up, 0 where down, and between."""
        return (torch.sigmoid(self.logits) * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def weight(self, up: torch.Tensor) -> torch.Tensor:
        """The weight on its grid, rounded as ``up`` says."""
        codes = (self.floor + up + self.zero_point).clamp(0, self.quantizer.n_codes - 1)
        return (codes - self.zero_point) * self.scale

    def trained(self) -> TrainedWeight:
        """The weight as the loop holds it."""
        return TrainedWeight(self.quantizer, self.logits, lambda: self.weight(self.up()))


class _Rounded(UnitTrainables):
    """The roundings of one unit.

    Args:
        choice: rate and penalty.
        roundings: of its weights.
    """

    def __init__(self, choice: AdaRound, roundings: list[_LayerRounding]) -> None:
        groups = [Group([rounding.logits], choice.learning_rate) for rounding in roundings]
        super().__init__(groups, [rounding.trained() for rounding in roundings])
        self._choice, self._roundings = choice, roundings

    @override
    def penalty(self, progress: float) -> torch.Tensor | None:
        choice = self._choice
        if progress < choice.warmup or not self._roundings:
            return None
        first, last = choice.beta
        beta = first + (last - first) * (progress - choice.warmup) / (1 - choice.warmup)
        # Smaller ones give gradients of no weight, whose squares are denormal: a CPU is many times slower with those.
        least = _LEAST_SLOPE ** (1 / (beta - 1)) if beta > 1 else 0.0
        sides = [(2 * rounding.up() - 1).abs().clamp_min(least) for rounding in self._roundings]
        undecided = [(1 - side.pow(beta)).sum() for side in sides]
        return choice.weight * torch.stack(undecided).sum()

    @override
    @torch.no_grad()
    def harden(self) -> None:
        """Give each layer its weight on the grid, rounded as was learned."""
        for rounding in self._roundings:
            rounding.layer.weight.copy_(rounding.weight((rounding.up() >= 0.5).float()))


def _is_quantized(layer: QuantLayer) -> bool:
    return layer.weight_quantizer is not None and layer.weight_quantizer.enabled
