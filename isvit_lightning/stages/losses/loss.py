"""What a loss is, and what it may know of the unit that it is for."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import SINGLE, Data, Unit
from isvit_lightning.stages.passes import Rows

Value = Callable[[Data, Data, torch.Tensor], torch.Tensor]
"""A scalar of the outputs of some images, given the targets and the places of the images among all rows."""


@dataclass(frozen=True)
class Suffix:
    """The float network behind a unit.

    Args:
        units: units of the float network behind that one, in order; none behind the last one.
    """

    units: tuple[Unit, ...] = ()

    def features(self, outputs: torch.Tensor) -> torch.Tensor:
        """What the last unit of the network reads, given what the unit before the suffix gives.

        Args:
            outputs: ``(batch, …)``; the features, ``(batch, channels)`` for a classifier, can be differentiated by it.
        """
        *inner, last = self.units
        data = {SINGLE: outputs}
        for unit in inner:
            data = unit(unit.entered(data))
        return last.entered(data)[SINGLE]

    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """What the network gives, ``(batch, classes)``, given what the unit before the suffix gives."""
        return self.units[-1]({SINGLE: self.features(outputs)})[SINGLE] if self.units else outputs


@dataclass(frozen=True)
class Surroundings:
    """A unit that is about to be tuned, and the network around it.

    Args:
        unit: the quantized unit.
        targets: outputs of the float unit on the images of this process; its row ``i`` is the image
            ``i · processes + rank``.
        device: where the unit computes.
        outputs: what the quantized unit gives at present, given numbers of rows; nothing can be differentiated.
        suffix: the float network behind the unit; None where units are only a part of the network, or no chain.
        rank: number of this process among those that share the images.
        processes: how many processes hold a share of the images.
        chunk: images that pass a network at once.
    """

    unit: Unit
    targets: Rows
    device: torch.device
    outputs: Callable[[torch.Tensor], Data]
    suffix: Suffix | None = None
    rank: int = 0
    processes: int = 1
    chunk: int = 32

    def numbers(self, rows: torch.Tensor) -> torch.Tensor:
        """Number of the image of each row of this process among the calibration images."""
        return rows * self.processes + self.rank

    def required_suffix(self, loss: str) -> Suffix:
        """The float network behind the unit.

        Args:
            loss: name of the loss that asks, for the message.

        Raises:
            IsvitError: units are only a part of the network.
        """
        if self.suffix is None:
            raise IsvitError(
                f"The loss {loss} reads the outputs of the network behind {self.unit.name}, expected one whose units "
                "are all of it, each reading the one before: take another loss under model.recipe.steps."
            )
        return self.suffix


class UnitLoss:
    """The loss of one unit while it is tuned; the default for losses that stay as they are.

    Args:
        value: the loss, a scalar, of the outputs of some images, given the targets and the places of the images among
            all rows of this process.
    """

    def __init__(self, value: Value) -> None:
        self._value = value

    def __call__(self, outputs: Data, targets: Data, places: torch.Tensor) -> torch.Tensor:
        """Mean loss, a scalar, of some images.

        Args:
            outputs: what the quantized unit gives, ``(batch, …)`` by name.
            targets: what the float unit gives.
            places: of the images among all rows of this process, ``(batch,)``.
        """
        return self._value(outputs, targets, places)

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the loss wants to look at the unit again before a step.

        Args:
            step: number of the step, from 0.
            steps: how many there are.
        """
        return False

    def refresh(self) -> None:
        """Look at the unit as it is tuned by now; all processes that share the images do at once."""

    def close(self) -> None:
        """Let go of the unit: it is not tuned any more."""


class Loss(ABC):
    """What a unit is tuned to make small. Subclasses are frozen dataclasses of plain choices."""

    @abstractmethod
    def prepare(self, around: Surroundings) -> UnitLoss:
        """The loss of one unit.

        Args:
            around: the unit, with the weights that its tuning begins with, and what is around it.
        """
