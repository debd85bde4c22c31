"""Training the stage of a step with a trainer of its own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from isvit_lightning.callbacks import (
    CalibrateQuantizers,
    LogLosses,
    ReturnMemory,
    SaveUnits,
    UnitProgress,
    WatchQuantizers,
)
from isvit_lightning.callbacks.losses import LOSS_COLUMNS
from isvit_lightning.callbacks.watch import GRID_COLUMNS
from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.stages import Stage, UnitStage
from isvit_lightning.storage.parts import Parts
from isvit_lightning.storage.tables import Table
from isvit_lightning.system.processes import rank
from isvit_lightning.system.termination import KeepSigterm


class UnitFitter:
    """Fits stages; with a run directory, their logs and finished units are kept there.

    Args:
        make_trainer: builds a trainer from the configuration and overriding arguments.
        alone: arguments of a trainer that computes in this process only, for stages that share units.
        directory: run directory; None keeps nothing.
        configured_callbacks: callbacks that the configuration names.
        parts: where finished units are kept; None keeps none.
        loggers: what the losses are logged to; None writes TensorBoard's files to the directory.
    """

    def __init__(
        self,
        make_trainer: Callable[..., Trainer],
        alone: Mapping[str, Any],
        directory: Path | None = None,
        configured_callbacks: Sequence[Any] = (),
        parts: Parts | None = None,
        loggers: Sequence[Logger] | None = None,
    ) -> None:
        self._make_trainer, self._alone = make_trainer, dict(alone)
        self._directory, self._configured, self._parts = directory, list(configured_callbacks), parts
        self._given = loggers
        self._ranges = CalibrateQuantizers()
        self._losses = self._table("metrics", LOSS_COLUMNS)
        self._grids = self._table("quantizers", GRID_COLUMNS)

    @property
    def range_seconds(self) -> float:
        """Time spent on choosing ranges of stages so far."""
        return self._ranges.seconds

    def __call__(self, stage: Stage) -> None:
        """Fit ``stage``.

        Raises:
            IsvitError: something stopped it before its end, or the trainer's options and callbacks do not fit together.
        """
        by_unit = isinstance(stage, UnitStage)
        kept = [SaveUnits(self._parts)] if self._parts is not None and by_unit else []
        units = [self._ranges, ReturnMemory(), UnitProgress(), WatchQuantizers(self._grids)] if by_unit else []
        callbacks = [*units, LogLosses(self._losses), KeepSigterm()]
        trainer = self._make_trainer(
            max_epochs=stage.epochs,
            enable_checkpointing=bool(kept),
            logger=self._loggers(stage),
            callbacks=[*callbacks, *self._configured, *kept],
            **({} if stage.shards_images else self._alone),
        )
        try:
            trainer.fit(stage)
        except MisconfigurationException as error:
            raise IsvitError(
                f"Lightning's trainer cannot take the step {stage.name} as it is configured ({first_line(error)}), "
                "expected options and callbacks that fit together: change trainer."
            ) from error
        stage.require_finished()

    def _loggers(self, stage: Stage) -> Any:
        if self._directory is None:
            return False
        if self._given is not None:
            return list(self._given)
        return TensorBoardLogger(self._directory, "logs", stage.log_name)

    def _table(self, name: str, columns: tuple[str, ...]) -> Table | None:
        """A table of the run, which is begun anew where no unit of an earlier one is used."""
        if self._directory is None:
            return None
        table = Table(self._directory / "logs" / f"{name}.csv", columns)
        if rank() == 0 and not (self._parts is not None and self._parts.seconds()):
            table.begin()
        return table
