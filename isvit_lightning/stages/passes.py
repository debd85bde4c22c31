"""Passes of many images through a part of a network, a few at a time: kept, or made anew whenever they are read."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.storage.caches import Caches, computable
from isvit_lightning.system.faults import is_out_of_memory

Pass = Callable[[torch.Tensor], torch.Tensor]

_IN_MEMORY = Caches()


@dataclass(frozen=True)
class Recomputed:
    """Rows that are not held: those that are asked for are computed from the images each time.

    Args:
        images: calibration images ``(n, 3, height, width)``.
        passes: what they pass, one after another; none of it may change while the rows are in use.
        shape: of all rows, ``(n, …)``.
        device: where the passes compute.
        chunk: images that pass at once.
    """

    images: torch.Tensor
    passes: tuple[Pass, ...]
    shape: torch.Size
    device: torch.device
    chunk: int

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Rows ``(m, …)`` in float32, where the images lie."""
        return _retried(self._compute, self.images[rows], self.device, Caches(chunk=self.chunk))

    def _compute(self, images: torch.Tensor) -> torch.Tensor:
        for each in self.passes:
            images = each(images)
        return images


Rows = torch.Tensor | Recomputed
"""One row for each image, held or recomputed."""


@torch.no_grad()
def run_in_chunks(function: Pass, inputs: Rows, device: torch.device, caches: Caches = _IN_MEMORY) -> Rows:
    """``function`` over the first axis of ``inputs``, a few rows at a time; the result is kept as ``caches`` say.

    Where memory runs out, half as many rows are taken.

    Raises:
        IsvitError: a value is too large for the precision of the caches.
    """
    if isinstance(inputs, Recomputed) or caches.where == "recompute":
        return _postponed(function, inputs, device, caches.chunk)
    return _retried(function, inputs, device, caches)


def _postponed(function: Pass, inputs: Rows, device: torch.device, chunk: int) -> Recomputed:
    images, passes = (inputs.images, inputs.passes) if isinstance(inputs, Recomputed) else (inputs, ())
    shape = function(inputs[:1].to(device)).shape
    return Recomputed(images, (*passes, function), torch.Size((len(images), *shape[1:])), device, chunk)


@torch.no_grad()
def _retried(function: Pass, inputs: torch.Tensor, device: torch.device, caches: Caches) -> torch.Tensor:
    try:
        return _run_in_chunks(function, inputs, device, caches)
    except RuntimeError as error:
        if caches.chunk == 1 or not is_out_of_memory(error):
            raise
    return _retried(function, inputs, device, replace(caches, chunk=caches.chunk // 2))


def _run_in_chunks(function: Pass, inputs: torch.Tensor, device: torch.device, caches: Caches) -> torch.Tensor:
    size = caches.chunk
    first = function(computable(inputs[:size]).to(device)).to(inputs.device)
    outputs = caches.empty((len(inputs), *first.shape[1:]), first)
    outputs[:size] = first
    for start in range(size, len(inputs), size):
        outputs[start : start + size] = function(computable(inputs[start : start + size]).to(device))
    parts = (outputs[start : start + size] for start in range(0, len(outputs), size))
    if outputs.dtype is torch.float16 and not all(bool(part.isfinite().all()) for part in parts):
        raise IsvitError(
            "An activation is larger than float16 can hold, expected values below 65504: set model.caches.precision to "
            "float32."
        )
    return outputs
