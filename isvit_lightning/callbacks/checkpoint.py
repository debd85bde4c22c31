"""Keeps what is finished: the ranges that a stage begins with, and each unit."""

import time
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from isvit_lightning.callbacks.walk import UnitWalk
from isvit_lightning.networks import quantizers
from isvit_lightning.storage.parts import Checkpoints
from isvit_lightning.system.processes import rank


class SaveUnits(Checkpoint):
    """Writes ``<stage>-start`` before the first unit of a stage, and ``<stage>-<index>`` after each unit.

    Lightning calls checkpoint callbacks after the stage and all other callbacks, so that what they do to a finished
    unit is kept too.

    Args:
        checkpoints: where to.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._since = time.perf_counter()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the ranges: those of later units were chosen on weights that earlier units no longer have."""
        walk = cast("UnitWalk", pl_module)
        if rank() == 0 and walk.tuning is not None and not walk.ranges_chosen:
            self.checkpoints.write(f"{walk.part}-start", _grids(walk.quantized.model), self._elapsed())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the unit."""
        walk = cast("UnitWalk", pl_module)
        if trainer.is_global_zero and walk.tuning is not None:
            index = walk.plan[walk.current_epoch]
            name = walk.unit.name if walk.unit.name in walk.rolled_back else None
            self.checkpoints.write(f"{walk.part}-{index:03d}", walk.unit.module.state_dict(), self._elapsed(), name)

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
