"""SIGTERM ends a run with a sentence; what is finished is on disk already."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lightning.pytorch import Callback, LightningModule, Trainer

from isvit_lightning.errors import IsvitError
from isvit_lightning.system.processes import is_first_process, rank

EXIT_STATUS = 128 + signal.SIGTERM


class TerminatedError(IsvitError):
    """The process was asked to end."""

    def sentence(self, verb: str) -> str:
        """What the user reads, who gave the command ``verb``."""
        advice = (
            "every finished unit is kept; go on with the same command and --resume true."
            if verb == "fit"
            else "give the same command again."
        )
        return f"The run was stopped by SIGTERM before its end, expected to be left alone: {advice}"


@contextmanager
def sentence_on_sigterm() -> Iterator[None]:
    """Raise :class:`TerminatedError` where SIGTERM arrives; processes other than the first just end."""
    before = signal.getsignal(signal.SIGTERM)
    _install()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class KeepSigterm(Callback):
    """Puts our handler back in the place of Lightning's, which waits for the other processes and finishes the unit."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once a stage runs."""
        _install()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once an evaluation runs."""
        _install()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once a prediction runs."""
        _install()


def _install() -> None:
    signal.signal(signal.SIGTERM, _raise if is_first_process() and rank() == 0 else signal.SIG_DFL)


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise TerminatedError
