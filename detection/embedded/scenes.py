"""Pictures of the shipped digits for detection: handwritten digits at random place and size on a textured canvas.

Nothing is stored but the 1797 digits of :mod:`isvit_lightning.embedded.digits`; every scene is drawn from its seed, its
split and its number alone, so that a set can be cut or extended without changing a picture. Scenes of the two splits
share no handwriting.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from isvit_lightning.embedded.digits import Split, digit_images
from isvit_lightning.errors import IsvitError

CLASS_NAMES: Final = tuple("0123456789")

_SPLIT_SEEDS: Final = {"train": 0, "held_out": 1}
_NUMBERS: Final = 1 << 24  # scenes of one split and seed
_TRIES: Final = 30  # places tried for a digit before it is left out
_INK: Final = 0.4  # brightness of an upscaled digit from which a pixel is part of it
_EDGE: Final = 0.15  # half width, in brightness, of the soft edge around it


@dataclass(frozen=True)
class SceneStyle:
    """What the scenes look like.

    Args:
        size: height and width of the canvas in pixels.
        min_objects: fewest digits on a canvas.
        max_objects: most digits on a canvas; fewer are drawn where no place is left.
        min_side: smallest side of a digit's 8 x 8 cell, upscaled, in pixels.
        max_side: largest such side, at most the canvas.
        max_cover: largest part of the smaller of two boxes that the other may cover.
        texture: strength of the background's texture, relative to the range from black to white.
        noise: standard deviation of the noise on every pixel, likewise.

    Raises:
        IsvitError: sides or numbers of objects out of order.
    """

    size: tuple[int, int] = (128, 128)
    min_objects: int = 1
    max_objects: int = 5
    min_side: int = 28
    max_side: int = 60
    max_cover: float = 0.15
    texture: float = 0.25
    noise: float = 0.03

    def __post_init__(self) -> None:
        """Refuse choices that no scene can meet."""
        if not 0 <= self.min_objects <= self.max_objects:
            raise IsvitError(
                f"A scene is to have {self.min_objects} to {self.max_objects} digits, expected 0 <= min_objects <= "
                "max_objects: change them."
            )
        if not 8 <= self.min_side <= self.max_side <= min(self.size):
            raise IsvitError(
                f"Digits are to be {self.min_side} to {self.max_side} pixels on a canvas of {self.size}, expected 8 <= "
                "min_side <= max_side <= the canvas: change them."
            )


@dataclass(frozen=True)
class Scene:
    """A picture and what is on it.

    Args:
        image: ``(3, height, width)`` uint8, RGB.
        labels: class of each digit ``(n,)`` int64.
        masks: visible pixels of each digit ``(n, height, width)`` bool, none empty.
        digits: place of each digit in its split, ``(n,)`` int64.
    """

    image: Tensor
    labels: Tensor
    masks: Tensor
    digits: Tensor

    @property
    def boxes(self) -> Tensor:
        """Smallest boxes around the masks, ``(n, 4)`` float32: left, top, right and bottom edge in pixels."""
        return mask_boxes(self.masks)


_DEFAULT: Final = SceneStyle()


def digit_scene(split: Split, number: int, seed: int = 0, style: SceneStyle = _DEFAULT) -> Scene:
    """One scene.

    Args:
        split: digits that are drawn: ``train`` or ``held_out``.
        number: which of the scenes, from zero.
        seed: seed of the set.
        style: what scenes look like.

    Raises:
        IsvitError: no such split.
    """
    images, labels = _digits(split)
    generator = torch.Generator().manual_seed((seed * len(_SPLIT_SEEDS) + _SPLIT_SEEDS[split]) * _NUMBERS + number)
    canvas = _background(style, generator)
    masks: list[Tensor] = []
    digits: list[int] = []
    boxes: list[list[int]] = []
    for _ in range(_integer(style.min_objects, style.max_objects, generator)):
        height, width = _cell(style, generator)
        box = _free_box(height, width, boxes, style, generator)
        if box is None:
            continue
        digit = _integer(0, len(labels) - 1, generator)
        alpha = _stretched(images[digit, :1], height, width)
        left, top = box[:2]
        window = canvas[:, top : top + height, left : left + width]
        window.lerp_(_ink(window.mean(dim=(1, 2)), generator)[:, None, None].expand_as(window), alpha.expand_as(window))
        mask = torch.zeros(style.size, dtype=torch.bool)
        mask[top : top + height, left : left + width] = alpha[0] >= 0.5
        # What is painted later hides what it covers.
        masks = [earlier & ~mask for earlier in masks] + [mask]
        digits.append(digit)
        boxes.append(box)
    canvas += style.noise * torch.randn(canvas.shape, generator=generator)
    stacked = torch.stack(masks) if masks else torch.zeros(0, *style.size, dtype=torch.bool)
    visible = stacked.flatten(1).any(dim=1)
    chosen = torch.tensor(digits, dtype=torch.int64)[visible]
    image = (canvas.clamp(0, 1) * 255).round().to(torch.uint8)
    return Scene(image, labels[chosen], stacked[visible], chosen)


def mask_boxes(masks: Tensor) -> Tensor:
    """Smallest boxes ``(n, 4)`` float32 around masks ``(n, height, width)``, none empty: left, top, right, bottom."""
    boxes = torch.zeros(len(masks), 4)
    for place, mask in enumerate(masks):
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        boxes[place] = torch.stack([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1]).float()
    return boxes


@cache
def _digits(split: Split) -> tuple[Tensor, Tensor]:
    """Read once: a set asks for them with every scene."""
    return digit_images(split)


def _background(style: SceneStyle, generator: torch.Generator) -> Tensor:
    """A canvas ``(3, height, width)`` with a color and texture of two scales, in [0, 1]."""
    canvas = (0.15 + 0.7 * torch.rand(3, 1, 1, generator=generator)).repeat(1, *style.size)
    for cells in (3, 12):
        grid = torch.rand(1, 3, cells, cells, generator=generator) - 0.5
        strength = style.texture * torch.rand(1, generator=generator)
        canvas += strength * nn.functional.interpolate(grid, size=style.size, mode="bicubic", align_corners=False)[0]
    return canvas.clamp_(0, 1)


def _cell(style: SceneStyle, generator: torch.Generator) -> tuple[int, int]:
    """Height and width of an upscaled digit: a random side, made a little narrower or flatter."""
    side = _integer(style.min_side, style.max_side, generator)
    squeeze = 0.8 + 0.2 * float(torch.rand(1, generator=generator))
    squeezed = max(8, round(squeeze * side))
    return (side, squeezed) if _integer(0, 1, generator) else (squeezed, side)


def _free_box(
    height: int, width: int, taken: list[list[int]], style: SceneStyle, generator: torch.Generator
) -> list[int] | None:
    """A place for a digit: left, top, right, bottom; None where none was found."""
    for _ in range(_TRIES):
        top = _integer(0, style.size[0] - height, generator)
        left = _integer(0, style.size[1] - width, generator)
        box = [left, top, left + width, top + height]
        if all(_cover(box, other) <= style.max_cover for other in taken):
            return box
    return None


def _cover(first: list[int], second: list[int]) -> float:
    """Shared area of two boxes relative to the smaller one."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return max(0, width) * max(0, height) / smaller


def _stretched(digit: Tensor, height: int, width: int) -> Tensor:
    """Opacity ``(1, height, width)`` of a digit ``(1, 32, 32)`` in [-1, 1], with an edge of a pixel or two."""
    bright = nn.functional.interpolate(digit[None], size=(height, width), mode="bicubic", align_corners=False)[0]
    return (((bright + 1) / 2 - _INK) / (2 * _EDGE) + 0.5).clamp(0, 1)


def _ink(background: Tensor, generator: torch.Generator) -> Tensor:
    """A color ``(3,)`` that stands out from the mean color ``(3,)`` behind it."""
    brighter = float(background.mean()) + 0.3 * (float(torch.rand(1, generator=generator)) - 0.5) < 0.5
    strength = 0.35 + 0.3 * torch.rand(3, generator=generator)
    return (background + strength if brighter else background - strength).clamp(0, 1)


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (1,), generator=generator))
