"""Keeps what is finished: the ranges that a stage begins with, and each unit."""

import time
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from isvit_lightning.networks import quantizers
from isvit_lightning.stages import UnitStage
from isvit_lightning.storage.parts import Parts
from isvit_lightning.system.processes import rank


class SaveUnits(Checkpoint):
    """Writes ``<stage>-start`` before the first unit of a stage, and ``<stage>-<index>`` after each unit.

    Lightning calls checkpoint callbacks after the stage and all other callbacks, so that what they do to a finished
    unit is kept too.

    Args:
        parts: where to.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._since = time.perf_counter()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the ranges: those of later units were chosen on weights that earlier units no longer have."""
        stage = cast("UnitStage", pl_module)
        if rank() == 0 and stage.tunes and not stage.ranges_chosen:
            self.parts.write(f"{stage.name}-start", _grids(stage.quantized.model), self._elapsed())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the unit."""
        stage = cast("UnitStage", pl_module)
        if trainer.is_global_zero and stage.tunes:
            index = stage.plan[stage.current_epoch]
            name = stage.unit.name if stage.unit.name in stage.rolled_back else None
            self.parts.write(f"{stage.name}-{index:03d}", stage.unit.module.state_dict(), self._elapsed(), name)

    def _elapsed(self) -> float:
        before, self._since = self._since, time.perf_counter()
        return self._since - before


def _grids(model: nn.Module) -> dict[str, Any]:
    """State of all quantizers of ``model`` by path."""
    return {
        f"{path}.{name}": tensor
        for path, quantizer in quantizers(model).items()
        for name, tensor in quantizer.state_dict().items()
    }
