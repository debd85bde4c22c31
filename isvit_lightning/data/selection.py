"""Which images of a list are taken, and whether two lists share one."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL.Image import Image
from torch import Tensor

from isvit_lightning.data.sources import ImageSource, LabeledImages, UnreadableImageError

_LOG = logging.getLogger(__name__)
Selection = Literal["random", "first"]

LARGEST_SEED = 2**32 - 1
"""Seeds are whole numbers from 0 to this one."""


@dataclass(frozen=True)
class CalibrationList:
    """The images that a network is calibrated on, in order.

    Args:
        names: name of each image.
        sha256: hash over names and contents.
        skipped: names of the damaged images that were drawn and passed over.
    """

    names: tuple[str, ...]
    sha256: str
    skipped: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: ImageSource, indices: Sequence[int], skipped: Sequence[int] = ()) -> "CalibrationList":
        """The list of the images at ``indices`` of ``source``, where those at ``skipped`` were passed over.

        Raises:
            UnreadableImageError: an image cannot be read.
        """
        digest = hashlib.sha256()
        for index in indices:
            content = hashlib.sha256(source.read(index)).hexdigest()
            digest.update(f"{source.name(index)}\0{content}\n".encode(errors="surrogateescape"))
        names, passed_over = (tuple(source.name(index) for index in some) for some in (indices, skipped))
        return cls(names, digest.hexdigest(), passed_over)


@dataclass(frozen=True)
class EvaluationList:
    """The images that a network is evaluated on.

    Args:
        number: how many.
        sha256: hash over their names, classes and sizes of their files in order.
    """

    number: int = 0
    sha256: str = ""

    @classmethod
    def of(cls, images: LabeledImages, indices: Sequence[int]) -> "EvaluationList":
        """The list of the images at ``indices`` of ``images``."""
        source, labels = images.source, images.labels
        lines = "\n".join(f"{source.name(index)}\0{labels[index]}\0{source.size(index)}" for index in indices)
        return cls(len(indices), hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest())


def calibration_order(count: int, selection: Selection, seed: int) -> list[int]:
    """The order in which calibration images are drawn.

    Args:
        count: number of images.
        selection: ``random`` shuffles by ``seed``, ``first`` keeps the order of the names.
        seed: seed of the shuffle; nothing else changes it.
    """
    if selection == "first":
        return list(range(count))
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def evenly_spaced(labels: Sequence[int], count: int) -> list[int]:
    """``count`` indices, ascending and evenly spaced over the images sorted by class.

    Every class that holds at least one in ``len(labels) / count`` images is met.

    Args:
        labels: class of each image.
        count: number of images, at most ``len(labels)``.
    """
    by_class = sorted(range(len(labels)), key=labels.__getitem__)
    return sorted(by_class[place * len(labels) // count] for place in range(count))


def first_overlap(calibration: ImageSource, chosen: Sequence[int], evaluation: ImageSource) -> tuple[str, str] | None:
    """Locations of the first evaluation image that is also calibrated on, and of its twin; None if there is none.

    Images are the same at the same location or with the same contents. Contents are compared only among images of equal
    size, so that hardly any of many files are read; images of unknown size are compared by location.

    Args:
        calibration: source of the calibration images.
        chosen: which of them are used.
        evaluation: all evaluation images.
    """
    locations = {calibration.location(index) for index in chosen}
    same_size: dict[int, list[int]] = {}
    for index in chosen:
        if (size := calibration.size(index)) is not None:
            same_size.setdefault(size, []).append(index)
    hashes: dict[int, dict[bytes, int]] = {}
    for index in range(len(evaluation)):
        location = evaluation.location(index)
        if location in locations:
            return location, location
        size = evaluation.size(index)
        if size is None or size not in same_size:
            continue
        if size not in hashes:
            hashes[size] = {_hash(calibration, twin): twin for twin in same_size[size]}
        twin = hashes[size].get(_hash(evaluation, index))
        if twin is not None:
            return calibration.location(twin), location
    return None


def _hash(source: ImageSource, index: int) -> bytes:
    return hashlib.sha256(source.read(index)).digest()


def readable(source: ImageSource, order: list[int], count: int) -> tuple[list[int], list[int]]:
    """The first ``count`` indices of ``order`` whose image can be decoded, fewer if there are not as many; the others.

    The others are those met on the way, whose image cannot be decoded.
    """
    kept: list[int] = []
    skipped: list[int] = []
    for index in order:
        if len(kept) == count:
            break
        try:
            source.tensor(index, _nothing)
            kept.append(index)
        except UnreadableImageError:
            skipped.append(index)
    if skipped:
        names = ", ".join(map(source.name, skipped))
        _LOG.warning("Skipped %d unreadable calibration images: %s", len(skipped), names)
    return kept, skipped


def _nothing(_: Image) -> Tensor:
    """A transform for images that only need to be decodable."""
    return torch.empty(0)
