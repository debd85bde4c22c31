"""How the curvature of the network's divergence by a unit's outputs is estimated."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from isvit_lightning.stages.losses.probe import Probe

Statistics = Sequence[torch.Tensor]
"""What one look at a unit measures."""
Curvature = Callable[[torch.Tensor, torch.Tensor], Sequence[torch.Tensor]]
"""Terms ``(batch,)`` of the errors ``(batch, …)`` of some images, given the places of the images."""


class Estimator(ABC):
    """How the curvature of the divergence by a unit's outputs is estimated. Subclasses are frozen dataclasses."""

    @property
    def looks(self) -> int:
        """How many times a unit is looked at: before it is tuned, and at equal distances while it is."""
        return 1

    @abstractmethod
    def measure(self, probe: Probe) -> Statistics:
        """One look at a unit.

        Args:
            probe: gives outputs and gradients.
        """

    @abstractmethod
    def curvature(self, measured: Sequence[Statistics]) -> Curvature:
        """Terms that grow with the square of the errors; the loss makes each of them 1 at the last look.

        Args:
            measured: what each look measured so far.
        """
