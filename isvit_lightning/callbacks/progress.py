"""One live bar, and one log line per finished unit."""

import logging
import time
from dataclasses import dataclass
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from isvit_lightning.stages import UnitStage
from isvit_lightning.system.processes import rank

_LOG = logging.getLogger(__name__)
_REFRESH_SECONDS = 0.5


@dataclass(frozen=True)
class UnitReport:
    """What became of one unit in one stage.

    Args:
        stage: name of the step.
        unit: name of the unit.
        first: loss of the first step.
        last: loss of the last step.
        seconds: time spent on the unit, preparation of its inputs included.
    """

    stage: str
    unit: str
    first: float
    last: float
    seconds: float


class UnitProgress(Callback):
    """Shows stage, unit k of n, loss first → now and time left, and keeps a report of each unit.

    Args:
        live: draw the bar; log lines come either way.
    """

    def __init__(self, live: bool = True) -> None:
        self.reports: list[UnitReport] = []
        self._live = live
        self._bar: Progress | None = None
        self._started = self._shown = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar of the stage."""
        stage = cast("UnitStage", pl_module)
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._bar = Progress(
            *columns, console=console, transient=True, disable=not (self._live and console.is_terminal and rank() == 0)
        )
        self._task = self._bar.add_task(stage.name, total=len(stage.plan) * stage.steps)
        self._bar.start()
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar a few times a second; reading the loss more often would stall an accelerator."""
        now = time.perf_counter()
        if self._bar is None or self._bar.disable or now - self._shown < _REFRESH_SECONDS:
            return
        self._shown = now
        stage = cast("UnitStage", pl_module)
        position = f"{stage.name}  unit {stage.position} {stage.unit.name}"
        losses = f"loss {float(stage.first_loss):.3g} → {float(stage.last_loss):.3g}"
        done = stage.current_epoch * stage.steps + batch_idx + 1
        self._bar.update(self._task, completed=done, description=f"{position}  {losses}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the finished unit."""
        stage = cast("UnitStage", pl_module)
        now = time.perf_counter()
        report = UnitReport(
            stage.name, stage.unit.name, float(stage.first_loss), float(stage.last_loss), now - self._started
        )
        self._started = now
        self.reports.append(report)
        # Processes that take units of their own tell of them; what all do alike, the first one tells.
        if trainer.is_global_zero and (rank() == 0 or not stage.replicated):
            _LOG.info(
                "%s unit %s %s: %s %.4g → %.4g in %.1f s",
                report.stage,
                stage.position,
                report.unit,
                "loss" if stage.tunes else "relative change",
                report.first,
                report.last,
                report.seconds,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error is readable."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
