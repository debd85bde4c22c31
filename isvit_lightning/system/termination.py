"""SIGTERM, Ctrl-C and the time limit end a run with a sentence; what is finished is on disk already."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from lightning.pytorch import Callback, LightningModule, Trainer

from isvit_lightning.system.processes import is_first_process, rank

Handler = Callable[[int, FrameType | None], None]


class TerminatedError(BaseException):
    """The run was asked to end. No ``Exception``: what goes on after an error must not go on after this.

    Args:
        by: what asked it to.
        expected: what a run that ends by itself needs.
        status: exit status of the program.
    """

    def __init__(
        self, by: str = "SIGTERM", expected: str = "to be left alone", status: int = 128 + signal.SIGTERM
    ) -> None:
        super().__init__(by)
        self.by, self.expected, self.status = by, expected, int(status)

    def sentence(self, arguments: Sequence[str]) -> str:
        """What the user reads, whose command line holds ``arguments``."""
        advice = "give the same command again."
        if "fit" in arguments[:1]:
            resumes = any(part.partition("=")[0] == "--resume" for part in arguments)
            advice = "every finished unit is kept; go on with the same command"
            advice += "." if resumes else " and --resume true."
        elif "compare" in arguments[:1]:
            advice = f"every finished cell and unit is kept; {advice}"
        return f"The run was stopped by {self.by} before its end, expected {self.expected}: {advice}"


@contextmanager
def sentence_on_signals() -> Iterator[None]:
    """Raise :class:`TerminatedError` where SIGTERM or Ctrl-C arrives.

    Processes other than the first just end on SIGTERM, and leave Ctrl-C, which a terminal sends to all, to the first.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _install()
    # Where Ctrl-C is ignored, as in what a shell runs in the background, it stays so.
    if before[signal.SIGINT] is not signal.SIG_IGN:
        interrupted = _raising(lambda: TerminatedError("Ctrl-C", status=128 + signal.SIGINT))
        signal.signal(signal.SIGINT, interrupted if is_first_process() else signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def time_limit(seconds: float | None, option: str) -> Iterator[None]:
    """Raise :class:`TerminatedError` in the first process after some time.

    Args:
        seconds: how long what is inside may take; None sets no limit.
        option: the option that sets the limit and its value, for the sentence.
    """
    if seconds is None or not is_first_process():
        yield
        return
    limited = _raising(lambda: TerminatedError(option, expected="to end within that time"))
    before = signal.signal(signal.SIGALRM, limited)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
    first = is_first_process() and rank() == 0
    signal.signal(signal.SIGTERM, _raising(TerminatedError) if first else signal.SIG_DFL)


def _raising(error: Callable[[], TerminatedError]) -> Handler:
    """A handler that raises ``error`` in this process; one that was forked from it, which loads images, goes on."""
    own = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == own:
            signal.signal(number, signal.SIG_DFL)  # whoever asks again does not want to wait
            raise error()

    return handle
