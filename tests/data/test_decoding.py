"""Pixels of every kind of file: upright, and the whole range of values in 8 bits."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from isvit_lightning.data.decoding import DecodingError, decode, in_mode, upright_size

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera that is held that way stores an upright image."""
GRADIENT = np.linspace(0, 65535, 16 * 16).round().astype(np.uint16).reshape(16, 16)
IN_8_BITS = (GRADIENT.astype(np.float64) / 257).round().astype(int)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def gray(content: bytes) -> np.ndarray[Any, Any]:
    """Values of an image of which all channels are equal."""
    values = np.asarray(decode(content)).astype(int)
    assert (values == values[..., :1]).all()
    return values[..., 0]


def upright() -> Image.Image:
    image = Image.new("RGB", (24, 16), (255, 255, 255))
    image.paste((200, 0, 0), (0, 0, 8, 8))
    image.paste((0, 0, 200), (16, 8, 24, 16))
    return image


def orientation(value: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("form", ["png", "tiff", "webp", "jpeg"])
def test_an_image_stands_upright(form: str, number: int) -> None:
    stored = upright().transpose(TURNS[number]) if number > 1 else upright()
    options = {"lossless": True} if form == "webp" else {"quality": 95, "subsampling": 0} if form == "jpeg" else {}
    image = decode(encoded(stored, form, exif=orientation(number), **options))
    assert (image.mode, image.size) == ("RGB", (24, 16))
    assert upright_size(Image.open(io.BytesIO(encoded(stored, form, exif=orientation(number), **options)))) == (24, 16)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(upright())).max() <= (8 if form == "jpeg" else 0)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_means_nothing(value: Any) -> None:
    content = encoded(upright(), "png", exif=orientation(value))
    assert np.array_equal(np.asarray(decode(content)), np.asarray(upright()))


def test_damaged_metadata_leave_the_pixels() -> None:
    content = encoded(upright(), "jpeg", quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff damaged")
    assert decode(content).size == (24, 16)


def test_gray_of_16_bits_turned() -> None:
    image = Image.fromarray(GRADIENT).transpose(Image.Transpose.ROTATE_90)
    assert np.abs(gray(encoded(image, "png", exif=orientation(6))) - IN_8_BITS).max() <= 1


@pytest.mark.parametrize("form", ["png", "tiff", "ppm"])
def test_gray_of_16_bits_is_that_of_8(form: str) -> None:
    assert np.abs(gray(encoded(Image.fromarray(GRADIENT), form)) - IN_8_BITS).max() <= 1


def test_dark_gray_of_16_bits_stays_dark() -> None:
    assert gray(encoded(Image.fromarray(GRADIENT // 64), "png")).max() == 4


def test_big_endian_gray_of_16_bits() -> None:
    image = Image.frombytes("I;16B", (16, 16), GRADIENT.astype(">u2").tobytes())
    assert np.abs(gray(encoded(image, "tiff")) - IN_8_BITS).max() <= 1


def test_white_that_is_zero() -> None:
    content = encoded(Image.fromarray(GRADIENT), "tiff", tiffinfo={262: 0})
    assert np.abs(gray(content) - (255 - IN_8_BITS)).max() <= 1


@pytest.mark.parametrize("scale", [1, 255, 65535])
def test_floating_point_gray_of_a_usual_range(scale: float) -> None:
    values = (GRADIENT / 65535 * scale).astype(np.float32)
    assert np.abs(gray(encoded(Image.fromarray(values), "tiff")) - IN_8_BITS).max() <= 1
    dark = values * 0.6  # not stretched
    assert gray(encoded(Image.fromarray(dark), "tiff")).max() == 153


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-1000, 3000), (0, 1e6)])
def test_floating_point_gray_of_another_range(low: float, high: float) -> None:
    values = (low + GRADIENT / 65535 * (high - low)).astype(np.float32)
    assert np.abs(gray(encoded(Image.fromarray(values), "tiff")) - IN_8_BITS).max() <= 1


def test_floating_point_gray_of_one_value() -> None:
    assert (gray(encoded(Image.fromarray(np.full((4, 4), 1e6, np.float32)), "tiff")) == 0).all()
    assert (gray(encoded(Image.fromarray(np.full((4, 4), 0.2, np.float32)), "tiff")) == 51).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_floating_point_gray_that_is_no_number(value: float) -> None:
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = value
    with pytest.raises(DecodingError, match="it holds NaN or infinity"):
        decode(encoded(Image.fromarray(values), "tiff"))


@pytest.mark.parametrize("scale", [1, 1 / 257, 30000])
def test_integers_of_32_bits(scale: float) -> None:
    values = (GRADIENT.astype(np.float64) * scale).astype(np.int32)
    assert np.abs(gray(encoded(Image.fromarray(values), "tiff")) - IN_8_BITS).max() <= 1


def tiff(bits: int, sample_format: int, width: int, data: bytes) -> bytes:
    """One row of gray values in a kind of file that Pillow reads but does not write."""
    values = {
        256: width,
        257: 1,
        258: bits,
        259: 1,
        262: 1,
        273: 134,
        277: 1,
        278: 1,
        279: len(data),
        339: sample_format,
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    content = b"II*\0\x08\0\0\0" + struct.pack("<H", len(values)) + entries + bytes(4)
    assert len(content) == values[273]
    return content + data


def test_unsigned_integers_of_32_bits() -> None:
    assert gray(tiff(32, 1, 3, struct.pack("<3I", 0, 2**31, 2**32 - 1))).tolist() == [[0, 128, 255]]
    assert gray(tiff(32, 2, 3, struct.pack("<3i", 0, -(2**31), 2**31 - 1))).tolist() == [[128, 0, 255]]


def test_gray_of_12_bits() -> None:
    assert gray(tiff(12, 1, 2, b"\x00\x0f\xff")).tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("mode", "color", "form", "expected"),
    [
        ("LA", (7, 0), "png", (7, 7, 7)),
        ("RGBA", (1, 2, 3, 0), "png", (1, 2, 3)),
        ("1", 1, "png", (255, 255, 255)),
        ("CMYK", (0, 0, 0, 0), "jpeg", (255, 255, 255)),
        ("CMYK", (0, 0, 0, 255), "tiff", (0, 0, 0)),
        ("P", 0, "gif", (0, 0, 0)),
    ],
)
def test_other_channels_are_rgb(mode: str, color: Any, form: str, expected: tuple[int, int, int]) -> None:
    image = decode(encoded(Image.new(mode, (8, 8), color), form))
    assert (image.mode, image.getpixel((3, 3))) == ("RGB", expected)


def test_a_palette_with_transparency() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encoded(image, "png", transparency=b"\xff\x00")).getpixel((3, 3)) == (10, 20, 30)


def test_one_channel_where_it_is_asked_for() -> None:
    assert decode(encoded(Image.fromarray(GRADIENT), "png"), "L").mode == "L"
    assert in_mode(upright(), "L").getpixel((12, 4)) == 255


def test_channels_without_rgb_values() -> None:
    with pytest.raises(DecodingError, match="conversion"):
        in_mode(Image.new("La", (4, 4)))


@pytest.mark.parametrize("content", [b"", b"text", b"GIF89a", b"BM" + bytes(60), b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_bytes_that_hold_no_image(content: bytes) -> None:
    with pytest.raises(DecodingError, match="."):
        decode(content)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "jpeg2000"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), max_size=4),
    st.floats(0.1, 1),
)
def test_damaged_bytes_are_an_image_or_a_reason(form: str, changes: list[tuple[float, bytes]], part: float) -> None:
    content = bytearray(encoded(upright(), form))
    for place, some in changes:
        start = int(place * len(content))
        content[start : start + len(some)] = some
    try:
        assert decode(bytes(content[: int(part * len(content))])).mode == "RGB"
    except DecodingError as error:
        assert str(error)
