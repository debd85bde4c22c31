"""Training the stage of a step with a trainer of its own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from isvit_lightning.callbacks import CalibrateQuantizers, ReturnMemory, SaveUnits, UnitProgress, WatchQuantizers
from isvit_lightning.stages import Stage, UnitStage
from isvit_lightning.storage.parts import Parts
from isvit_lightning.system.termination import KeepSigterm


class UnitFitter:
    """Fits stages; with a run directory, their logs and finished units are kept there.

    Args:
        make_trainer: builds a trainer from the configuration and overriding arguments.
        alone: arguments of a trainer that computes in this process only, for stages that share units.
        directory: run directory; None keeps nothing.
        configured_callbacks: callbacks that the configuration names.
        parts: where finished units are kept; None keeps none.
    """

    def __init__(
        self,
        make_trainer: Callable[..., Trainer],
        alone: Mapping[str, Any],
        directory: Path | None = None,
        configured_callbacks: Sequence[Any] = (),
        parts: Parts | None = None,
    ) -> None:
        self._make_trainer, self._alone = make_trainer, dict(alone)
        self._directory, self._configured, self._parts = directory, list(configured_callbacks), parts
        self._ranges = CalibrateQuantizers()

    @property
    def range_seconds(self) -> float:
        """Time spent on choosing ranges of stages so far."""
        return self._ranges.seconds

    def __call__(self, stage: Stage) -> None:
        """Fit ``stage``."""
        by_unit = isinstance(stage, UnitStage)
        kept = [SaveUnits(self._parts)] if self._parts is not None and by_unit else []
        units = [self._ranges, ReturnMemory(), UnitProgress(), WatchQuantizers()] if by_unit else []
        callbacks = [*units, KeepSigterm()]
        trainer = self._make_trainer(
            max_epochs=stage.epochs,
            enable_checkpointing=bool(kept),
            logger=self._loggers(stage),
            callbacks=[*callbacks, *self._configured, *kept],
            **({} if stage.shards_images else self._alone),
        )
        trainer.fit(stage)

    def _loggers(self, stage: Stage) -> Any:
        if self._directory is None:
            return False
        return [kind(self._directory, "logs", stage.log_name) for kind in (CSVLogger, TensorBoardLogger)]
