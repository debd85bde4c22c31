"""Lists of images: decoding, what is no image, and images that are in memory already."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from isvit_lightning.data.sources import ImageSource, TensorSource, UnreadableImageError
from isvit_lightning.errors import IsvitError
from tests.data.samples import PNG, png, source


class Encoded(ImageSource):
    """Contents of files, in memory."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = contents

    @override
    def __len__(self) -> int:
        return len(self.contents)

    @override
    def name(self, index: int) -> str:
        return f"{index}.png"

    @override
    def location(self, index: int) -> str:
        return f"/images/{index}.png"

    @override
    def size(self, index: int) -> int:
        return len(self.contents[index])

    @override
    def read(self, index: int) -> bytes:
        return self.contents[index]


def stored(mode: str, color: object, form: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 2), color).save(buffer, form)  # type: ignore[arg-type]
    return buffer.getvalue()


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


@pytest.mark.parametrize(
    ("content", "color"),
    [
        (stored("RGB", (1, 2, 3)), (1, 2, 3)),
        (stored("L", 7), (7, 7, 7)),
        (stored("1", 1), (255, 255, 255)),
        (stored("RGBA", (1, 2, 3, 9)), (1, 2, 3)),
        (stored("P", 0, "gif"), (0, 0, 0)),
        (stored("RGB", (4, 5, 6), "bmp"), (4, 5, 6)),
    ],
)
def test_every_image_is_decoded_to_rgb(content: bytes, color: tuple[int, int, int]) -> None:
    image = Encoded(content).image(0)
    assert (image.mode, image.size) == ("RGB", (4, 2))
    assert image.getpixel((0, 0)) == color


def test_the_transform_gets_the_decoded_image() -> None:
    tensor = Encoded(png(3, (5, 4)), png(9)).tensor(0, to_tensor)
    assert torch.equal(tensor, torch.full((3, 4, 5), 3.0))


@pytest.mark.parametrize("content", [b"", b"text", PNG, png(3)[:-30], b"\xff\xd8\xff\xe0 damaged", png(3)[:40]])
def test_what_is_no_image_is_a_sentence(content: bytes) -> None:
    images = Encoded(png(1), content)
    for use in (images.image, lambda index: images.tensor(index, to_tensor)):
        with pytest.raises(
            UnreadableImageError, match=r"^The image /images/1.png cannot be read \(.*\), expected .*skip\.$"
        ):
            use(1)
    assert images.image(0).size == (8, 8)


def test_an_image_that_would_fill_the_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        Encoded(png(1)).image(0)


def test_an_error_of_the_transform_passes() -> None:
    def broken(image: Image.Image) -> Tensor:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        Encoded(png(1)).tensor(0, broken)


def test_unreadable_images_are_mistakes_of_the_user() -> None:
    error = Encoded(png(1)).unreadable(0, "a reason")
    assert isinstance(error, IsvitError)
    assert "(a reason)" in str(error)
    assert "\n" not in str(error)


def test_images_in_memory_are_as_they_are() -> None:
    images = source([3, 5])
    assert len(images) == 2
    assert torch.equal(images.tensor(1, to_tensor), torch.full((3, 8, 8), 5.0))  # no transform
    assert (images.name(1), images.location(1)) == ("5", "memory:5")
    assert images.size(1) == 4 * 3 * 8 * 8


def test_contents_of_images_in_memory_are_their_bytes() -> None:
    tensors = torch.randn(2, 8, 8, 3).permute(0, 3, 1, 2)  # not contiguous
    images = TensorSource(tensors, ["a", "b"], "memory")
    for index in range(2):
        content = images.read(index)
        assert len(content) == images.size(index)
        kept = torch.frombuffer(bytearray(content), dtype=torch.float32).view(3, 8, 8)
        assert torch.equal(kept, tensors[index])
    assert images.read(0) != images.read(1)


def test_a_source_goes_to_other_processes() -> None:
    copied = pickle.loads(pickle.dumps(source([3, 5])))
    assert copied.read(0) == source([3, 5]).read(0)
    assert copied.name(1) == "5"
