"""Pictures of what detectors found."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detection.detections import Detections

Color = tuple[int, int, int]

LEAST_SIDE: Final = 384
"""The longer side of a drawn picture is at least this many pixels, so that text on small images can be read."""

_TEXT: Final = 13  # height of letters in pixels
_LINE: Final = 18  # height of a line of text
_OPACITY: Final = 0.45  # of masks
_GAP: Final = 6  # between two pictures
_INK: Final[Color] = (255, 255, 255)
_PAPER: Final[Color] = (24, 24, 24)


def draw_detections(
    image: Image.Image, detections: Detections, class_names: Sequence[str], threshold: float = 0.3
) -> Image.Image:
    """The image with boxes, masks, class names and scores; a small image is enlarged.

    Args:
        image: the image, RGB, to whose pixels the boxes refer.
        detections: what was found.
        class_names: name of each label.
        threshold: objects of a lower score are left out.

    Returns:
        A new picture, ``zoom(image)`` times as large.
    """
    factor = zoom(image)
    picture = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BILINEAR)
    places = [place for place in range(len(detections)) if float(detections.scores[place]) >= threshold]
    places.sort(key=lambda place: float(detections.scores[place]))  # the surest on top
    for place in places:
        mask = detections.mask(place)
        if mask is not None:
            _paint(picture, mask, label_color(int(detections.labels[place]), len(class_names)))
    draw = ImageDraw.Draw(picture)
    for place in places:
        label = int(detections.labels[place])
        box = [factor * float(edge) for edge in detections.boxes[place]]
        text = f"{class_names[label]} {float(detections.scores[place]):.2f}"
        _frame(draw, box, text, label_color(label, len(class_names)))
    return picture


def comparison(
    image: Image.Image, found: Mapping[str, Detections], class_names: Sequence[str], threshold: float = 0.3
) -> Image.Image:
    """One picture of what several detectors found on an image, from left to right.

    Args:
        image: the image, RGB.
        found: detections by title, for example ``float`` and ``W4A4``.
        class_names: name of each label.
        threshold: objects of a lower score are left out.
    """
    pictures = [draw_detections(image, detections, class_names, threshold) for detections in found.values()]
    return beside(pictures, list(found))


def beside(pictures: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Pictures from left to right, each under its title.

    Args:
        pictures: at least one, for example of the float and of the quantized detector.
        titles: one for each.
    """
    width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) - 1)
    whole = Image.new("RGB", (width, _LINE + max(picture.height for picture in pictures)), _PAPER)
    draw, left = ImageDraw.Draw(whole), 0
    for picture, title in zip(pictures, titles, strict=True):
        draw.text((left + 3, 1), title, fill=_INK, font=ImageFont.load_default(_TEXT))
        whole.paste(picture, (left, _LINE))
        left += picture.width + _GAP
    return whole


def label_color(label: int, classes: int) -> Color:
    """Color of a class, different for each of ``classes``."""
    red, green, blue = colorsys.hsv_to_rgb(label / max(1, classes), 0.9, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def zoom(image: Image.Image) -> int:
    """How many times an image is enlarged before it is drawn on."""
    return max(1, math.ceil(LEAST_SIDE / max(image.size)))


def _paint(picture: Image.Image, mask: Tensor, color: Color) -> None:
    """Tint the pixels of ``mask``, which is stretched to the picture."""
    stencil = Image.fromarray((mask.to(torch.uint8) * round(255 * _OPACITY)).numpy())
    picture.paste(Image.new("RGB", picture.size, color), mask=stencil.resize(picture.size, Image.Resampling.NEAREST))


def _frame(draw: ImageDraw.ImageDraw, box: Sequence[float], text: str, color: Color) -> None:
    """A box and, above it or inside where there is no room above, its text on the box's color."""
    left, top, right, bottom = box
    draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=2)
    font = ImageFont.load_default(_TEXT)
    line = top - _LINE if top >= _LINE else top
    draw.rectangle((left, line, left + draw.textlength(text, font=font) + 5, line + _LINE - 1), fill=color)
    draw.text((left + 3, line + 1), text, fill=_PAPER, font=font)
