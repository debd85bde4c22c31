"""The losses of a stage, in a table and for its loggers."""

from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from isvit_lightning.stages import Stage
from isvit_lightning.storage.tables import Table
from isvit_lightning.system.processes import rank

LOSS_COLUMNS = ("step", "unit", "iteration", "loss")


class LogLosses(Callback):
    """Writes the first and last loss of each unit, and every one of ``log_every_n_steps`` iterations between them.

    Args:
        table: where they are written in the first process, with the columns ``LOSS_COLUMNS``; None writes them nowhere
            but to the loggers of the trainer.
    """

    def __init__(self, table: Table | None = None) -> None:
        self._table = table
        self._kept: list[tuple[int, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with a unit."""
        self._kept.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep a loss where it is; reading it would stall an accelerator."""
        stage, every = cast("Stage", pl_module), cast("Any", trainer).log_every_n_steps
        iteration = batch_idx + 1
        if iteration in (1, stage.steps) or (every and iteration % every == 0):
            self._kept.append((iteration, stage.last_loss.detach().clone()))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the losses of the unit."""
        stage = cast("Stage", pl_module)
        losses = [(iteration, float(loss)) for iteration, loss in self._kept]
        if self._table is not None and rank() == 0:
            self._table.add((stage.name, stage.unit_name, *row) for row in losses)
        for logger in trainer.loggers:
            for iteration, loss in losses:
                logger.log_metrics({f"{stage.name}/loss": loss}, step=stage.units_before * stage.steps + iteration)
