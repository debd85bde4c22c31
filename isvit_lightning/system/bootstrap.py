"""How a process of the program begins."""

import ctypes
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from isvit_lightning.system.heap import keep_one_heap
from isvit_lightning.system.processes import is_first_process


def begin_process(told_by_all: Sequence[str]) -> None:
    """Set up logs, warnings and memory; a process that another one started ends with it.

    Args:
        told_by_all: names of the loggers that every process speaks through, not only the first.
    """
    first = is_first_process()
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s", stream=sys.stderr)
    _quieten()
    keep_one_heap()
    if not first:
        for name in told_by_all:
            logging.getLogger(name).setLevel(logging.INFO)
        _end_with_parent()


def _end_with_parent() -> None:
    """On Linux: end when the first process, which started this one, is killed, instead of working on without it."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _quieten() -> None:
    """Silence advice of the libraries that does not apply to calibration."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Of its reports, only the end of a process is worth reading.
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch.trainer.connectors.signal_connector").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", module="timm.*")
