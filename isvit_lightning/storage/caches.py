"""Where the inputs and targets of a unit are kept while it is tuned, or that they are not."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from isvit_lightning.errors import IsvitError


@dataclass(frozen=True)
class Caches:
    """Where the inputs and targets of a unit are kept while it is tuned.

    Args:
        where: memory; disk: files that are mapped into memory and vanish with the run; or recompute: nothing is kept
            but the images, and each step runs its images through all units before its own, up to three times (inputs
            in float and quantized form, targets). A network of n units then takes about n times as long to tune, and
            its result differs by rounding error.
        precision: float32, or float16 for half the need; a unit computes in float32 either way. What is recomputed is
            float32.
        directory: folder of the files; none takes the system's folder for temporary files, which may lie in memory.
            Where caches are recomputed, the images go to files only if it is given.
        chunk: images that pass a network at once while caches are filled or recomputed.

    Raises:
        IsvitError: chunk below 1.
    """

    where: Literal["memory", "disk", "recompute"] = "memory"
    precision: Literal["float32", "float16"] = "float32"
    directory: str | None = None
    chunk: int = 32

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise IsvitError(f"model.caches.chunk is {self.chunk}, expected at least 1: change it there.")

    @property
    def uses_files(self) -> bool:
        """Whether the images, and caches where they are kept, go to files."""
        return self.where == "disk" or (self.where == "recompute" and self.directory is not None)

    @property
    def bytes_per_value(self) -> int:
        """Bytes of one cached number; none where nothing is kept."""
        if self.where == "recompute":
            return 0
        return 2 if self.precision == "float16" else 4

    def empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of ``shape`` to write to, in memory where ``like`` lies or in a file.

        Raises:
            IsvitError: the disk has no room for it.
        """
        dtype = torch.float16 if self.precision == "float16" else like.dtype
        return like.new_empty(shape, dtype=dtype) if self.where == "memory" else self._mapped(shape, dtype)

    def empty_images(self, *shape: int) -> Tensor:
        """The same for calibration images, which keep float32.

        Raises:
            IsvitError: the disk has no room for them.
        """
        return self._mapped(shape, torch.float32) if self.uses_files else torch.empty(shape)

    def require_space(self, need: int) -> None:
        """Refuse to begin what the disk cannot hold.

        Args:
            need: bytes.

        Raises:
            IsvitError: files go to a disk with less than ``need`` bytes free.
        """
        free = shutil.disk_usage(self._folder()).free
        if self.uses_files and need > free:
            raise IsvitError(self._too_small(self._folder(), need, free))

    def _folder(self) -> Path:
        folder = Path(self.directory or tempfile.gettempdir()).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise IsvitError(
                f"{folder} cannot be made ({error.strerror}), expected a writable folder: change "
                "model.caches.directory."
            ) from None
        return folder

    def _mapped(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor whose file has no name any more: it goes with the tensor, also when the program is killed."""
        folder, size = self._folder(), prod(shape) * dtype.itemsize
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix="isvit-") as file:
                _reserve(file.fileno(), size)
                return torch.from_file(file.name, shared=True, size=prod(shape), dtype=dtype).view(shape)
        except OSError:
            raise IsvitError(self._too_small(folder, size, shutil.disk_usage(folder).free)) from None

    def _too_small(self, folder: Path, need: int, free: int) -> str:
        halve = "" if self.precision == "float16" else "set model.caches.precision to float16, "
        return (
            f"The caches need {need / 1e9:.1f} GB but {folder} has {free / 1e9:.1f} GB free, expected room for them: "
            f"change model.caches.directory, {halve}or lower data.calibration_images."
        )


def computable(cached: Tensor) -> Tensor:
    """Cached values in the type that units compute in."""
    return cached.float() if cached.dtype is torch.float16 else cached


def peak_values(sizes: Mapping[str, tuple[int, int]]) -> int:
    """Largest number of cached values per image while units are entered one after another.

    Args:
        sizes: values of input and output of each unit per image, in order.
    """
    before, peak = 0, 0
    for inputs, outputs in sizes.values():
        # Outputs of the unit before, in both networks, give way to the inputs; then the targets are added.
        peak = max(peak, 2 * before + inputs, before + 2 * inputs + outputs)
        before = outputs
    return peak


def _reserve(descriptor: int, size: int) -> None:
    """Take the room now: a full disk under a mapped file would end the process without a word."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)
