"""Datasets of timm as lists of images: places, contents and classes of each kind of reader."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from timm.data.dataset import ImageDataset

from isvit_lightning.data.sources import UnreadableImageError
from isvit_lightning.data.timm_sources import ReaderSource, TorchvisionSource
from tests.data.samples import png


class Reader:
    """What timm's reader of Hugging Face datasets offers: images by number and no names."""

    def __init__(self, targets: list[int]) -> None:
        self.targets_read = targets

    def __len__(self) -> int:
        return len(self.targets_read)

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        return io.BytesIO(png(index)), self.targets_read[index]


class ReaderOfLabels(Reader):
    """A newer one, which tells its classes without reading an image."""

    class_to_idx = {"bird": 0, "cat": 1, "yak": 4}  # noqa: RUF012 - as timm has it

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        raise AssertionError("no image needs to be read")

    def iter_targets(self) -> Iterator[int]:
        return iter(self.targets_read)


def read_by(reader: Any) -> ReaderSource:
    dataset = ImageDataset.__new__(ImageDataset)
    dataset.reader = reader
    return ReaderSource(dataset, "hfds/mine/validation")


def test_images_without_names_are_numbered() -> None:
    source = read_by(Reader([2, 0]))
    assert (source.name(1), source.location(1)) == ("00000001", "hfds/mine/validation/00000001")
    assert source.size(1) is None
    assert source.read(1) == png(1)
    assert source.image(1).getpixel((0, 0)) == (1, 1, 1)


class Missing(Reader):
    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        raise FileNotFoundError(2, "No such file or directory")


def test_an_image_that_vanished() -> None:
    with pytest.raises(UnreadableImageError, match=r"hfds/mine/validation/00000001 cannot be read \(No such file or"):
        read_by(Missing([0, 0])).read(1)


def test_classes_are_told_or_read() -> None:
    read, told = read_by(Reader([2, 0])).labeled(), read_by(ReaderOfLabels([1, 0])).labeled()
    assert (read.labels, read.num_classes) == ((2, 0), 3)
    assert (told.labels, told.num_classes) == ((1, 0), 5)


class Decoded:
    """A dataset of torchvision; image ``k`` is gray ``k``."""

    def __init__(self, targets: list[int]) -> None:
        self.numbers = targets

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if self.numbers[index] < 0:
            raise OSError("it is damaged")
        return Image.new("L", (4, 2 + index), index), self.numbers[index]


class WithTargets(Decoded):
    classes = ("bird", "cat", "dog", "yak")

    @property
    def targets(self) -> list[int]:
        return self.numbers


def test_decoded_images_are_numbered_and_rgb() -> None:
    source = TorchvisionSource(Decoded([2, 0]), "torch/mine/train")
    assert len(source) == 2
    assert (source.name(1), source.location(1)) == ("00000001", "torch/mine/train/00000001")
    assert source.size(1) is None
    assert source.image(1).mode == "RGB"
    assert source.image(1).getpixel((0, 0)) == (1, 1, 1)


def test_contents_of_decoded_images_are_size_and_pixels() -> None:
    class Turned(Decoded):
        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("RGB", (2, 4) if index else (4, 2)), 0

    source = TorchvisionSource(Turned([0, 0]), "")
    assert source.read(0) == source.read(0)
    assert source.read(0) != source.read(1)  # the same bytes of pixels


def test_classes_of_decoded_images_are_told_or_read() -> None:
    read = TorchvisionSource(Decoded([2, 0]), "").labeled()
    told = TorchvisionSource(WithTargets([1, -1]), "").labeled()  # reading the second one would fail
    assert (read.labels, read.num_classes) == ((2, 0), 3)
    assert (told.labels, told.num_classes) == ((1, -1), 4)


def test_a_damaged_decoded_image() -> None:
    source = TorchvisionSource(Decoded([0, -1]), "torch/mine/train")
    for use in (source.image, source.read):
        with pytest.raises(UnreadableImageError, match=r"torch/mine/train/00000001 cannot be read \(it is damaged\)"):
            use(1)
