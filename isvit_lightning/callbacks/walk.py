"""What the callbacks see of a stage."""

from typing import Protocol

import torch

from isvit_lightning.networks import OpenedNetwork, Unit
from isvit_lightning.recipe.method import Tuning


class UnitWalk(Protocol):
    """A stage, as far as the callbacks are concerned: it walks the units of a network, one per epoch."""

    title: str
    plan: list[int]
    ranges_chosen: bool
    repeated: bool
    rolled_back: list[str]
    images: torch.Tensor
    quantized: OpenedNetwork
    tuning: Tuning | None
    first_loss: torch.Tensor
    last_loss: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Where the network computes."""

    @property
    def current_epoch(self) -> int:
        """Position in ``plan``."""

    @property
    def part(self) -> str:
        """The title in one word, for files."""

    @property
    def place(self) -> str:
        """Where the stage stands, as ``5/14``."""

    @property
    def steps(self) -> int:
        """Steps per unit."""

    @property
    def unit(self) -> Unit:
        """The quantized unit of the current epoch."""

    def sample(self, count: int) -> torch.Tensor:
        """What the unit reads of the first ``count`` images; valid once the unit has been entered."""

    def enter_unit(self) -> None:
        """Compute inputs and targets of the current unit; a second call in the same epoch does nothing."""
