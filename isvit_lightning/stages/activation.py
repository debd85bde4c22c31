"""Stage 1 of SOS: activations quantized, post-LayerNorm ones per channel, weights float (method page, section 3)."""

import torch

from isvit_lightning.networks import OpenedNetwork, Unit, quantizers, switch
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe.method import Method
from isvit_lightning.stages.base import Schedule
from isvit_lightning.stages.tuning import TuningStage


class ActivationStage(TuningStage):
    """Tunes float weights under quantized activations.

    A unit without an activation quantizer (the patch projection) would have a loss of exactly zero and is not visited.

    Args:
        quantized: network that is tuned.
        target: float network.
        images: calibration images ``(n, 3, height, width)``.
        schedule: iterations, batch size and seed.
        method: choices of the method; ``method.stage1`` is used.
    """

    title = "stage 1"

    def __init__(
        self,
        quantized: OpenedNetwork,
        target: OpenedNetwork,
        images: torch.Tensor,
        schedule: Schedule,
        method: Method,
    ) -> None:
        super().__init__(quantized, target, images, schedule, method.stage1, number=1)

    @property
    def shards_images(self) -> bool:
        """On quantized inputs, where every unit depends on the ones before it; otherwise processes share the units."""
        return self.reads_quantized

    def visits(self, unit: Unit) -> bool:
        """Units with an activation quantizer."""
        return any(quantizer.role is not Role.WEIGHT for quantizer in quantizers(unit.module).values())

    def setup(self, stage: str) -> None:
        """Activations on, weights off."""
        switch(self.network, weights=False, activations=True)
