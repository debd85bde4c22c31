"""Map-style datasets that timm opens, as lists of images."""

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from timm.data.dataset import ImageDataset
from typing_extensions import override

from isvit_lightning.data.decoding import in_mode
from isvit_lightning.data.sources import ImageSource, LabeledImages


class ReaderSource(ImageSource):
    """Encoded images behind a reader of timm: a Hugging Face dataset.

    The reader is used without its dataset, which would put the next image in place of an unreadable one.

    Args:
        dataset: the dataset that owns the reader.
        origin: what the dataset and its split are called.
    """

    def __init__(self, dataset: ImageDataset, origin: str) -> None:
        self._reader: Any = dataset.reader
        self._origin = origin

    @override
    def __len__(self) -> int:
        return len(self._reader)

    @override
    def name(self, index: int) -> str:
        return f"{index:08d}"

    @override
    def location(self, index: int) -> str:
        return f"{self._origin}/{self.name(index)}"

    @override
    def size(self, index: int) -> None:
        """Unknown: every image would have to be read."""

    @override
    def read(self, index: int) -> bytes:
        try:
            with self._reader[index][0] as file:
                return bytes(file.read())
        except OSError as error:
            raise self.unreadable(index, error.strerror or error) from None

    def labeled(self) -> LabeledImages:
        """The images with their classes."""
        reader = self._reader
        targets = reader.iter_targets() if hasattr(reader, "iter_targets") else (target for _, target in reader)
        classes = getattr(reader, "class_to_idx", None) or {}
        return _labeled(self, [int(label) for label in targets], classes.values())


class TorchvisionSource(ImageSource):
    """Images of a dataset of torchvision, which decodes them itself. Their contents are the pixels.

    Args:
        dataset: yields an image and its class.
        origin: what the dataset and its split are called.
    """

    def __init__(self, dataset: Any, origin: str) -> None:
        self._dataset = dataset
        self._origin = origin

    @override
    def __len__(self) -> int:
        return len(self._dataset)

    @override
    def name(self, index: int) -> str:
        return f"{index:08d}"

    @override
    def location(self, index: int) -> str:
        return f"{self._origin}/{self.name(index)}"

    @override
    def size(self, index: int) -> None:
        """Unknown: every image would have to be decoded."""

    @override
    def read(self, index: int) -> bytes:
        image = self.image(index)
        return f"{image.size}".encode() + image.tobytes()

    @override
    def image(self, index: int) -> Image:
        try:
            return in_mode(self._dataset[index][0])
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise self.unreadable(index, error) from None

    def labeled(self) -> LabeledImages:
        """The images with their classes."""
        labels = getattr(self._dataset, "targets", None)
        if labels is None:
            labels = [self._dataset[index][1] for index in range(len(self))]
        return _labeled(self, [int(label) for label in labels], range(len(getattr(self._dataset, "classes", ()))))


def _labeled(source: ImageSource, labels: Sequence[int], known: Any) -> LabeledImages:
    """Count the classes that have a name or an image."""
    return LabeledImages(source, tuple(labels), 1 + max((*known, *labels)))
