"""What a recipe is a list of."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from isvit_lightning.networks import OpenedNetwork
from isvit_lightning.stages.schedule import Schedule
from isvit_lightning.stages.stage import Stage


@dataclass(frozen=True)
class Work:
    """What a step is taken on.

    Args:
        quantized: network that the step changes.
        target: float network.
        images: calibration images ``(n, 3, height, width)``.
        schedule: iterations, batch size and caches.
        seed: seed of the run.
        range_images: images on which ranges of activations are chosen.
        number: place of the step in its recipe, from 1; part of the seed of its draws.
    """

    quantized: OpenedNetwork
    target: OpenedNetwork
    images: torch.Tensor
    schedule: Schedule
    seed: int = 0
    range_images: int = 64
    number: int = 1


Fit = Callable[[Stage], None]
"""Trains the stage of a step with a trainer of its own."""


class Step(ABC):
    """A step of a recipe. Subclasses are frozen dataclasses of plain choices."""

    name: str
    """What rows, logs and parts of a run call it."""

    @property
    @abstractmethod
    def quantizes_weights(self) -> bool:
        """Whether weights are quantized behind it."""

    @property
    def chooses_ranges(self) -> bool:
        """Whether activations have ranges behind it."""
        return True

    @property
    def needs_ranges(self) -> bool:
        """Whether activations must have ranges before it."""
        return False

    @property
    def tunes(self) -> bool:
        """Whether it tunes unit by unit, so that the parts of a run are its units."""
        return False

    def iterations_of(self, schedule: Schedule) -> int | None:
        """Optimizer steps, per unit where it tunes unit by unit; None where it takes none.

        Args:
            schedule: of the run.
        """
        return None

    def batch_size_of(self, schedule: Schedule) -> int:
        """Images of an optimizer step.

        Args:
            schedule: of the run.
        """
        return schedule.batch_size

    @property
    def has_row(self) -> bool:
        """Whether the network behind it is worth a row of the results; not behind an exact rewrite."""
        return True

    @abstractmethod
    def take(self, work: Work, fit: Fit) -> None:
        """Take the step.

        Args:
            work: networks and images; ``work.quantized`` is changed in place.
            fit: trains a stage, where the step has one.
        """
