"""From the bytes of an image file to its pixels: upright, in 8 bits."""

from io import BytesIO
from typing import Any, Final

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from isvit_lightning.errors import first_line

_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""
_EXCHANGING: Final = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))
"""Those that exchange width and height."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF files."""


class DecodingError(ValueError):
    """Bytes that hold no image that can be decoded."""


def decode(content: bytes, mode: str = "RGB") -> Image.Image:
    """The image that the bytes of a file hold, the first one where they hold several.

    Args:
        content: the bytes.
        mode: Pillow's name of the channels, RGB or L.

    Raises:
        DecodingError: they hold no image, or a damaged one.
    """
    try:
        image = Image.open(BytesIO(content))
        image.load()
    except UnidentifiedImageError:
        raise DecodingError("it is no image of a known kind") from None
    except Exception as error:  # damaged bytes make Pillow's decoders raise almost anything
        raise DecodingError(first_line(error)) from error
    return in_mode(image, mode)


def in_mode(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """A decoded image upright, with 8 bits in each of the channels of ``mode``.

    It is turned and mirrored as its EXIF orientation tells. Gray values of more than 8 bits, which Pillow itself would
    clip at 255, are scaled: those of 16 bits from their whole range, and integers of 32 bits and floating-point numbers
    from the smallest of the ranges [0, 1] (not for integers), [0, 255] and [0, 65535] that holds all values of the
    image, or from their own minimum and maximum where none does.

    Args:
        image: the image.
        mode: Pillow's name of the channels, RGB or L.

    Raises:
        DecodingError: it holds NaN or infinity, or channels that have no RGB values.
    """
    turn = _turn(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _in_8_bits(image)
    try:
        image = image.convert(mode)
    except ValueError as error:
        raise DecodingError(first_line(error)) from error
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image once it is upright; its pixels need not be loaded."""
    exchanged = image.format != "TIFF" and _turn(image) in _EXCHANGING  # Pillow tells that of a TIFF file upright
    return image.size[::-1] if exchanged else image.size


def _turn(image: Image.Image) -> Image.Transpose | None:
    # Not Pillow's exif_transpose, which writes the metadata anew and fails where any of it is damaged.
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - so do damaged metadata, whose pixels may be whole
        return None


def _in_8_bits(image: Image.Image) -> Image.Image:
    """A gray image of more than 8 bits as one of mode L."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise DecodingError("it holds NaN or infinity")
    if image.mode == "I" and _tag(image, _BITS_PER_SAMPLE) == 32 and _tag(image, _SAMPLE_FORMAT) in (None, 1):
        values %= 2**32  # Pillow gives unsigned integers as signed ones
    low, high = _range(image, values)
    scaled = np.rint((values - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    white_is_zero = _tag(image, _PHOTOMETRIC) == 0  # which Pillow heeds up to 8 bits only
    return Image.fromarray(255 - scaled if white_is_zero else scaled)


def _range(image: Image.Image, values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """The values that stand for black and white."""
    if image.mode.startswith("I;16"):
        return 0, 2 ** (_tag(image, _BITS_PER_SAMPLE) or 16) - 1
    if image.format in ("PNG", "PPM") and image.mode == "I":
        return 0, 65535  # of 16 bits in the file
    low, high = float(values.min()), float(values.max())
    for full in (1, 255, 65535) if image.mode == "F" else (255, 65535):
        if low >= 0 and high <= full:
            return 0, full
    return low, high


def _tag(image: Image.Image, number: int) -> int | None:
    """The first value of a tag of a TIFF file; None for other files and where it is missing."""
    value: Any = getattr(image, "tag_v2", {}).get(number)
    return next(iter(value), None) if isinstance(value, tuple) else value
