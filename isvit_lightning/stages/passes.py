"""Passes of many images through a part of a network, a few at a time: kept, or made anew whenever they are read."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import SINGLE, Data
from isvit_lightning.storage.caches import Caches, computable
from isvit_lightning.system.faults import is_out_of_memory

Pass = Callable[[Data], Data]

_IN_MEMORY = Caches()


@dataclass(frozen=True)
class Held:
    """Rows that are kept, one for each image.

    Args:
        tensors: by name, ``(n, …)`` each.
    """

    tensors: Data

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | torch.Tensor) -> Data:
        """Rows ``(m, …)`` in the type that units compute in, where they are kept."""
        return {name: computable(tensor[rows]) for name, tensor in self.tensors.items()}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of all rows by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class Recomputed:
    """Rows that are not held: those that are asked for are computed from the images each time.

    Args:
        images: calibration images ``(n, 3, height, width)``.
        passes: what they pass, one after another; none of it may change while the rows are in use.
        shapes: of all rows by name, ``(n, …)``.
        device: where the passes compute.
        chunk: images that pass at once.
    """

    images: torch.Tensor
    passes: tuple[Pass, ...]
    shapes: dict[str, torch.Size]
    device: torch.device
    chunk: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | torch.Tensor) -> Data:
        """Rows ``(m, …)`` in float32, where the images lie."""
        images = {SINGLE: self.images[rows]}
        return _retried(self._compute, Held(images), self.device, Caches(chunk=self.chunk)).tensors

    def _compute(self, data: Data) -> Data:
        for function in self.passes:
            data = function(data)
        return data


Rows = Held | Recomputed
"""What a unit reads or gives, for each image: held or recomputed."""


def moved(data: Data, device: torch.device) -> Data:
    """``data`` on ``device``."""
    return {name: tensor.to(device) for name, tensor in data.items()}


@torch.no_grad()
def run_in_chunks(function: Pass, inputs: Rows, device: torch.device, caches: Caches = _IN_MEMORY) -> Rows:
    """``function`` over the rows of ``inputs``, a few at a time; the result is kept as ``caches`` say.

    Where memory runs out, half as many rows are taken.

    Raises:
        IsvitError: a value is too large for the precision of the caches.
    """
    if isinstance(inputs, Recomputed) or caches.where == "recompute":
        return _postponed(function, inputs, device, caches.chunk)
    return _retried(function, inputs, device, caches)


def _postponed(function: Pass, inputs: Rows, device: torch.device, chunk: int) -> Recomputed:
    images, passes = (inputs.images, inputs.passes) if isinstance(inputs, Recomputed) else (inputs.tensors[SINGLE], ())
    probe = function(moved(inputs[:1], device))
    shapes = {name: torch.Size((len(images), *tensor.shape[1:])) for name, tensor in probe.items()}
    return Recomputed(images, (*passes, function), shapes, device, chunk)


@torch.no_grad()
def _retried(function: Pass, inputs: Held, device: torch.device, caches: Caches) -> Held:
    try:
        return _run_in_chunks(function, inputs, device, caches)
    except RuntimeError as error:
        if caches.chunk == 1 or not is_out_of_memory(error):
            raise
    return _retried(function, inputs, device, replace(caches, chunk=caches.chunk // 2))


def _run_in_chunks(function: Pass, inputs: Held, device: torch.device, caches: Caches) -> Held:
    size, place = caches.chunk, next(iter(inputs.tensors.values())).device
    first = moved(function(moved(inputs[:size], device)), place)
    outputs = {name: caches.empty((len(inputs), *tensor.shape[1:]), tensor) for name, tensor in first.items()}
    for name, tensor in first.items():
        outputs[name][:size] = tensor
    del first
    for start in range(size, len(inputs), size):
        for name, tensor in function(moved(inputs[start : start + size], device)).items():
            outputs[name][start : start + size] = tensor
    for kept in outputs.values():
        parts = (kept[start : start + size] for start in range(0, len(kept), size))
        if kept.dtype is torch.float16 and not all(bool(part.isfinite().all()) for part in parts):
            raise IsvitError(
                "An activation is larger than float16 can hold, expected values below 65504: set "
                "model.caches.precision to float32."
            )
    return Held(outputs)
