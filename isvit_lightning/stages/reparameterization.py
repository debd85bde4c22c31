"""Stage 2 of SOS as a Lightning stage: folds each pair and measures what the fold changed."""

import torch

from isvit_lightning.networks import OpenedNetwork, Unit
from isvit_lightning.recipe.method import Method
from isvit_lightning.stages.base import Schedule, UnitStage
from isvit_lightning.stages.reparameterize import reparameterize
from isvit_lightning.storage.caches import computable


class ReparameterizationStage(UnitStage):
    """Gives every post-LayerNorm activation one per-tensor grid; nothing is tuned.

    The relative change of each unit's output stands in ``last_loss``: rounding error with a whole zero point, as large
    as the quantization error with the published fractional one.

    Args:
        quantized: network whose pairs are folded, in place.
        target: float network.
        images: images for the measurement, ``(n, 3, height, width)``; the first ``method.range_images`` are used.
        schedule: ignored but for its seed.
        method: statistic and rounding.
    """

    title = "stage 2"
    repeated = True

    def __init__(
        self,
        quantized: OpenedNetwork,
        target: OpenedNetwork,
        images: torch.Tensor,
        schedule: Schedule,
        method: Method,
    ) -> None:
        super().__init__(quantized, target, images[: method.range_images], schedule)
        self.method = method
        self.first_loss = torch.zeros(())

    @property
    def steps(self) -> int:
        """One step per unit."""
        return 1

    def visits(self, unit: Unit) -> bool:
        """Units that hold a pair."""
        return any(pair.unit == unit.name for pair in self.quantized.pairs)

    def configure_optimizers(self) -> None:
        """Nothing is tuned."""

    @torch.no_grad()
    def training_step(self, step: int) -> None:
        """Fold the pairs of the current unit.

        Args:
            step: always 0.
        """
        # Nothing is gained by mixed precision here, and the folded bias would be rounded to it.
        with torch.autocast(self.device.type, enabled=False):
            self._fold()

    def _fold(self) -> None:
        # A pair's norm may lie before the unit (Swin's patch merging), so the unit is entered again after the fold.
        previous = computable(self._before[:64]).to(self.device)
        before = self.unit.module(self.unit.enter(previous))
        for pair in self.quantized.pairs:
            if pair.unit == self.unit.name:
                reparameterize(pair, self.method.statistic, self.method.round_zero_point)
        after = self.unit.module(self.unit.enter(previous))
        self.last_loss = (after - before).norm() / before.norm()

    def _step_into(self, index: int) -> None:
        self._before = self.targets if index else self.images
        super()._step_into(index)
