"""From the bytes of an image file to its pixels."""

import struct
from io import BytesIO

from PIL import Image


class DecodingError(ValueError):
    """Bytes that hold no image that can be decoded."""


def decode(content: bytes, mode: str = "RGB") -> Image.Image:
    """The image that the bytes of a file hold.

    Args:
        content: the bytes.
        mode: Pillow's name of the channels, such as RGB or L.

    Raises:
        DecodingError: they hold no image, or a damaged one.
    """
    try:
        return in_mode(Image.open(BytesIO(content)), mode)
    # What Pillow's decoders raise on damaged bytes; OSError covers unknown formats and truncation.
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DecodingError(str(error)) from error


def in_mode(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """A decoded image with other channels.

    Args:
        image: the image.
        mode: Pillow's name of the channels, such as RGB or L.
    """
    return image.convert(mode)
