"""What of a unit is tuned."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantConv2d, QuantLinear, QuantWindowAttention
from isvit_lightning.networks import quantizers
from isvit_lightning.quantizers import Quantizer
from isvit_lightning.stages.losses import Surroundings

QuantLayer = QuantLinear | QuantConv2d


@dataclass(frozen=True)
class Group:
    """Tensors that are tuned with one learning rate.

    Args:
        tensors: on one device and of one type.
        rate: initial learning rate.
        floor: smallest value of each tensor; None where there is none.
    """

    tensors: list[torch.Tensor]
    rate: float
    floor: torch.Tensor | None = None


@dataclass(frozen=True)
class TrainedWeight:
    """A weight that is quantized once for all micro-batches of a step.

    Args:
        quantizer: of the weight.
        tensor: what is tuned; of the shape of the weight.
        quantize: the quantized weight, differentiable by ``tensor``.
    """

    quantizer: Quantizer
    tensor: torch.Tensor
    quantize: Callable[[], torch.Tensor]


class UnitTrainables:
    """What is tuned of one unit; the default for choices that add nothing to the loop.

    Args:
        groups: tensors with their rates.
        weights: weights that are quantized once a step; others are quantized whenever they are read.
    """

    def __init__(self, groups: Sequence[Group], weights: Sequence[TrainedWeight] = ()) -> None:
        self.groups = list(groups)
        self.weights = list(weights)

    def phase(self, step: int, steps: int) -> tuple[int, int]:
        """Place of a step in its phase and the length of that phase; each phase has a fresh optimizer.

        Args:
            step: number of the step, from 0.
            steps: how many there are.
        """
        return step, steps

    def advance(self, step: int, steps: int, around: Surroundings) -> None:
        """Change what is tuned before the first step of a later phase; all processes that share the images do at once.

        Args:
            step: number of the step, from 0.
            steps: how many there are.
            around: the unit and its inputs.
        """

    def finish(self, around: Surroundings) -> None:
        """Do what wants the inputs of the unit, behind the last step; all processes that share the images do at once.

        Args:
            around: the unit and its inputs.
        """

    def penalty(self, progress: float) -> torch.Tensor | None:
        """What is added to the loss of a step; None for nothing.

        Args:
            progress: share of the steps that are made, 0 to 1.
        """
        return None

    def harden(self) -> None:
        """Make the unit what it is to be when it is not tuned any more; its state has no new names."""


class Trainables(ABC):
    """Which tensors of a unit are tuned, and how. Subclasses are frozen dataclasses of plain choices."""

    @property
    def trains_weights(self) -> bool:
        """Whether anything but scales of activations is tuned."""
        return True

    @abstractmethod
    def of(self, unit: nn.Module, compiled: bool) -> UnitTrainables:
        """What is tuned of one unit.

        Args:
            unit: the module, with the weights that its tuning begins with.
            compiled: whether the unit is compiled, which then quantizes its weights in the same pass as everything
                else.
        """


@dataclass(frozen=True)
class StraightThrough(Trainables):
    """Weights and biases, through the rounding of the weights.

    Args:
        rate: initial learning rate of Adam; it falls to zero along a cosine.
        relative: whether the rate is relative to the root mean square of each weight, where a bias takes the rate of
            its weight: wide networks have small weights, and Adam's steps do not know how large a weight is. false
            takes it as it is for all weights and biases, as published.

    Raises:
        IsvitError: the rate is not positive.
    """

    rate: float = 1.2e-2
    relative: bool = True

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise IsvitError(
                f"model.recipe has trainables with a rate of {self.rate}, expected a positive one: change it under "
                "steps or changes."
            )

    @override
    def of(self, unit: nn.Module, compiled: bool) -> UnitTrainables:
        """See :meth:`Trainables.of`; no norm is tuned."""
        weights = [] if compiled else [_straight_through(layer) for layer in quantized_layers(unit)]
        return UnitTrainables(self._groups(unit), [weight for weight in weights if weight is not None])

    def _groups(self, unit: nn.Module) -> list[Group]:
        if not self.relative:
            return [Group(trainable_parameters(unit), self.rate)]
        return [
            Group(tensors, self.rate * float(tensors[0].detach().square().mean().sqrt()))
            for tensors in _trainable_layers(unit)
        ]


@dataclass(frozen=True)
class NoWeights(Trainables):
    """No weight: only the scales of the activations, where the step tunes them."""

    @property
    @override
    def trains_weights(self) -> bool:
        return False

    @override
    def of(self, unit: nn.Module, compiled: bool) -> UnitTrainables:
        return UnitTrainables([])


def _straight_through(layer: QuantLayer) -> TrainedWeight | None:
    quantizer = layer.weight_quantizer
    if quantizer is None or not quantizer.enabled:
        return None
    return TrainedWeight(quantizer, layer.weight, lambda: quantizer(layer.weight))


def quantized_layers(module: nn.Module) -> list[QuantLayer]:
    """The quantized layers below ``module``."""
    return [child for child in module.modules() if isinstance(child, QuantLinear | QuantConv2d)]


def _trainable_layers(module: nn.Module) -> list[list[torch.Tensor]]:
    """Weight and bias of each quantized layer below ``module``, and each of Swin's position bias tables; no norm."""
    layers: list[list[torch.Tensor]] = []
    for child in module.modules():
        if isinstance(child, QuantLinear | QuantConv2d):
            layers.append([parameter for parameter in (child.weight, child.bias) if parameter is not None])
        elif isinstance(child, QuantWindowAttention):
            layers.append([child.relative_position_bias_table])
    return layers


def trainable_parameters(module: nn.Module) -> list[torch.Tensor]:
    """Weights and biases of the quantized layers below ``module``, and Swin's position bias tables; no norm."""
    return [parameter for layer in _trainable_layers(module) for parameter in layer]


def scale_groups(module: nn.Module, rate: float) -> list[Group]:
    """Numbers of the activations' grids that can be learned, each with a rate relative to it.

    Adam's steps do not know how large a scale is. None falls below a tenth of what it was.

    Args:
        module: the unit; quantizers that are switched off are left alone.
        rate: initial learning rate of Adam, relative to each number; 0 gives no group.
    """
    numbers = [
        quantizer.get_buffer(name)
        for quantizer in quantizers(module).values()
        if rate and quantizer.enabled and not quantizer.role.weight
        for name in quantizer.format.learned(quantizer.granularity)
    ]
    return [Group([number], rate * float(number), number / 10) for number in numbers]
