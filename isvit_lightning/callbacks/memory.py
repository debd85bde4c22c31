"""Gives memory that nobody uses back to the system."""

import ctypes
import gc
import sys

from lightning.pytorch import Callback, LightningModule, Trainer


def trim() -> None:
    """On Linux: return the free parts of the heap, which glibc otherwise keeps; elsewhere nothing."""
    if sys.platform == "linux":
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back is not None:
            give_back(0)


def let_go() -> None:
    """Collect what is only held in cycles, as a trainer and its module hold each other, and return its memory."""
    gc.collect()
    trim()


class ReturnMemory(Callback):
    """Trims the heap before each unit, when the last one's step is over and the next one's caches are not there yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trim what the evaluations and the choice of ranges left."""
        let_go()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trim what the last unit left."""
        trim()
