"""Out of memory: the same step again, in smaller pieces."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.system.faults import is_out_of_memory

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class MicroBatch:
    """How many images pass a unit at once: as many as asked for, and half as many whenever memory runs out.

    Args:
        size: number to begin with.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def retry(self, work: Callable[[int], _Result], where: str, device: torch.device) -> _Result:
        """``work`` with the largest micro-batch that fits, given as its argument.

        Args:
            work: does everything from its beginning each time that it is called, with the same draws.
            where: stage and unit, for messages.
            device: what runs out of memory, for messages.

        Raises:
            IsvitError: not even a single image fits.
        """
        try:
            return work(self.size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._halve(error, where, device)
        # Again behind the handler: inside, the traceback still holds the tensors that did not fit.
        return self.retry(work, where, device)

    def _halve(self, error: Exception, where: str, device: torch.device) -> None:
        if self.size == 1:
            elsewhere = "" if device.type == "cpu" else "set trainer.accelerator to cpu, or "
            raise IsvitError(
                f"{where} does not fit into the memory of {device} with one image at a time ({first_line(error)}), "
                f"expected room for it: {elsewhere}end what else uses that memory."
            ) from error
        _LOG.warning(
            "%s: out of memory with %d images at once, going on with %d; model.micro_batch sets it from the start",
            where,
            self.size,
            self.size // 2,
        )
        self.size //= 2
