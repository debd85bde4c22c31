"""Small images on disk, and a data module over images in memory."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from isvit_lightning.data import CalibrationDataModule
from isvit_lightning.data.sources import LabeledImages, TensorSource
from isvit_lightning.sources.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(input_size=(3, 8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
Store = Callable[[str, dict[str, bytes]], Path]
"""Stores files by relative path under a name and returns where."""
PNG = b"\x89PNG\r\n\x1a\n damaged"


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """A gray image in which every pixel is ``value``, encoded."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "png")
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    """Write files by relative path below ``root``."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    """Write an archive of files by name."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def calibration_files(count: int = 6) -> dict[str, bytes]:
    """Image ``k`` of ``count`` has the value ``k``."""
    return {f"{number:04d}.png": png(number) for number in range(count)}


def evaluation_files(classes: Sequence[str] = ("bird", "cat", "dog"), each: int = 4) -> dict[str, bytes]:
    """Images of value 100, 101, … in one folder per class."""
    names = [f"{name}/{number}.png" for name in classes for number in range(each)]
    return {name: png(100 + number) for number, name in enumerate(names)}


def values(images: torch.Tensor) -> list[int]:
    """The gray value of each image of a batch ``(n, 3, h, w)`` that was transformed by ``PREPROCESSING``."""
    return [round(255 * float(image[0, 0, 0])) for image in images]


class MemoryDataModule(CalibrationDataModule):
    """Images ``0 … count - 1`` to calibrate on and others to evaluate on, each filled with its number."""

    def __init__(self, count: int = 10, labels: Sequence[int] | None = (), **options: Any) -> None:
        super().__init__(**{"calibration_images": 4, "workers": 0, **options})
        self.count = count
        self.labels = labels
        self.attach(PREPROCESSING)

    def calibration_source(self) -> TensorSource | None:
        return source(range(self.count)) if self.count else None

    def evaluation_source(self) -> LabeledImages | None:
        if not self.labels:
            return None
        return LabeledImages(source(range(100, 100 + len(self.labels))), self.labels, 1 + max(self.labels))


def source(numbers: Sequence[int]) -> TensorSource:
    """Images ``(n, 3, 8, 8)`` filled with their numbers, named by them."""
    images = torch.stack([torch.full((3, 8, 8), float(number)) for number in numbers])
    return TensorSource(images, [str(number) for number in numbers], "memory")
