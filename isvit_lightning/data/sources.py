"""Lists of images that can be loaded one by one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from isvit_lightning.data.decoding import DecodingError, decode
from isvit_lightning.errors import IsvitError

Transform = Callable[[Image.Image], Tensor]


class UnreadableImageError(IsvitError):
    """An image that cannot be read or decoded."""


class ImageSource(ABC):
    """Images in a fixed order, each with a name. A source is sent to worker processes, so it holds no open file."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of an image, unique in this source."""

    @abstractmethod
    def location(self, index: int) -> str:
        """Where the image lies; equal for one image reached through two sources."""

    @abstractmethod
    def size(self, index: int) -> int | None:
        """Bytes of :meth:`read`; None where nothing short of reading tells it."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Contents of the image, encoded or not.

        Raises:
            UnreadableImageError: the contents cannot be read.
        """

    def image(self, index: int) -> Image.Image:
        """The decoded image.

        Raises:
            UnreadableImageError: the image cannot be read or decoded.
        """
        content = self.read(index)
        try:
            return decode(content)
        except DecodingError as error:
            raise self.unreadable(index, error) from None

    def tensor(self, index: int, transform: Transform) -> Tensor:
        """The preprocessed image ``(3, height, width)`` float32.

        Args:
            index: place in the list.
            transform: preprocessing of the network.

        Raises:
            UnreadableImageError: the image cannot be read or decoded.
        """
        return transform(self.image(index))

    def unreadable(self, index: int, reason: object) -> UnreadableImageError:
        """The error that tells that an image is of no use."""
        return UnreadableImageError(
            f"The image {self.location(index)} cannot be read ({reason}), expected an undamaged image: replace it, or "
            "pass over such calibration images with data.on_unreadable=skip."
        )


@dataclass(frozen=True)
class LabeledImages:
    """Images with classes, to evaluate on.

    Args:
        source: the images.
        labels: class of each image, in the order of the source.
        num_classes: number of classes, including those without an image.
        class_names: their names in order; none where they are not known.
    """

    source: ImageSource
    labels: Sequence[int]
    num_classes: int
    class_names: tuple[str, ...] = ()


class TensorSource(ImageSource):
    """Images that are in memory, preprocessed already.

    Args:
        images: ``(n, 3, height, width)`` float32.
        names: one for each image.
        origin: what the images are called as a whole.
    """

    def __init__(self, images: Tensor, names: Sequence[str], origin: str) -> None:
        self._images = images
        self._names = tuple(names)
        self._origin = origin

    @override
    def __len__(self) -> int:
        return len(self._names)

    @override
    def name(self, index: int) -> str:
        return self._names[index]

    @override
    def location(self, index: int) -> str:
        return f"{self._origin}:{self._names[index]}"

    @override
    def size(self, index: int) -> int:
        return self._images[index].nbytes

    @override
    def read(self, index: int) -> bytes:
        return self._images[index].contiguous().view(torch.uint8).numpy().tobytes()

    @override
    def tensor(self, index: int, transform: Transform) -> Tensor:
        """The image ``(3, height, width)`` as it is."""
        return self._images[index]
