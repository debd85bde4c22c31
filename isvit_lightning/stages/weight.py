"""Stage 3 of SOS: weights and activations quantized, on the quantized network's own inputs (method page, section 3)."""

import torch

from isvit_lightning.networks import OpenedNetwork, Unit, switch
from isvit_lightning.recipe.method import Method
from isvit_lightning.stages.base import Schedule
from isvit_lightning.stages.tuning import TuningStage


class WeightStage(TuningStage):
    """Tunes weights through their own rounding.

    Args:
        quantized: network that is tuned.
        target: float network.
        images: calibration images ``(n, 3, height, width)``.
        schedule: iterations, batch size and seed.
        method: choices of the method; ``method.stage3`` is used.
    """

    title = "stage 3"

    def __init__(
        self,
        quantized: OpenedNetwork,
        target: OpenedNetwork,
        images: torch.Tensor,
        schedule: Schedule,
        method: Method,
    ) -> None:
        super().__init__(quantized, target, images, schedule, method.stage3, number=3)

    @property
    def shards_images(self) -> bool:
        """Always: the quantized weights of a unit change what later units read."""
        return True

    def visits(self, unit: Unit) -> bool:
        """Every unit."""
        return True

    def setup(self, stage: str) -> None:
        """Activations and weights on."""
        switch(self.network, weights=True, activations=True)
