"""Stage 2 of SOS as a Lightning stage: folds each wire and measures what the fold changed."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from typing_extensions import override

from isvit_lightning.networks import Unit
from isvit_lightning.stages.passes import moved
from isvit_lightning.stages.step import Fit, Step, Work
from isvit_lightning.stages.walk import UnitStage
from isvit_lightning.transforms import fold, is_foldable

_IMAGES = 64
"""Images on which the change is measured."""


@dataclass(frozen=True)
class Fold(Step):
    """Gives every activation behind a LayerNorm that has a uniform grid per channel one grid for all channels.

    Scales and zero points move into the norm and the layer behind it; nothing is tuned (I&S-ViT eq. 15-16).

    Args:
        name: what rows, logs and parts of a run call the step.
        statistic: what the scale and zero point of all channels are of those of each: mean; median, which outlier
            channels do not drag; or mad, the mean of the channels whose scale is no further than three median absolute
            deviations from the median.
        round_zero_point: round the common zero point, which makes the fold exact. The published code does not.
    """

    name: str = "fold"
    statistic: Literal["mean", "median", "mad"] = "mean"
    round_zero_point: bool = True

    @property
    @override
    def quantizes_weights(self) -> bool:
        return False

    @property
    @override
    def has_row(self) -> bool:
        return False

    @property
    @override
    def chooses_ranges(self) -> bool:
        return False

    @property
    @override
    def needs_ranges(self) -> bool:
        return True

    @override
    def take(self, work: Work, fit: Fit) -> None:
        stage = FoldStage(self, work)
        if stage.visited:
            fit(stage)


class FoldStage(UnitStage):
    """Folds the wires of each unit.

    The relative change of a unit's output stands in ``last_loss``: rounding error with a whole zero point, as large as
    the quantization error with the published fractional one.

    Args:
        choice: statistic and rounding.
        work: networks and images, of which the first are used to measure the change.
    """

    replicated = True

    def __init__(self, choice: Fold, work: Work) -> None:
        self._wires = [wire for wire in work.quantized.wires if is_foldable(wire)]
        super().__init__(choice.name, replace(work, images=work.images[: work.range_images]))
        self.choice = choice
        self.first_loss = torch.zeros(())
        self._before = self._no_rows()

    @property
    @override
    def steps(self) -> int:
        """One step per unit."""
        return 1

    @override
    def visits(self, unit: Unit) -> bool:
        """Units that hold a wire to be folded."""
        return any(wire.unit == unit.name for wire in self._wires)

    def configure_optimizers(self) -> None:
        """Nothing is tuned."""

    @override
    @torch.no_grad()
    def training_step(self, step: int) -> None:
        """Fold the wires of the current unit.

        Args:
            step: always 0.
        """
        # Nothing is gained by mixed precision here, and the folded bias would be rounded to it.
        with torch.autocast(self.device.type, enabled=False):
            self._fold()

    def _fold(self) -> None:
        # A wire's norm may lie before the unit (Swin's patch merging), so the unit is entered again after the fold.
        previous = moved(self._before[:_IMAGES], self.device)
        before = self.unit(self.unit.entered(previous))
        for wire in self._wires:
            if wire.unit == self.unit.name:
                fold(wire, self.choice.statistic, self.choice.round_zero_point)
        after = self.unit(self.unit.entered(previous))
        change = [(after[name] - output).norm() / output.norm() for name, output in before.items()]
        self.last_loss = torch.stack(change).max()

    @override
    def _step_into(self, index: int) -> None:
        self._before = self.targets if index else self._images()
        super()._step_into(index)
