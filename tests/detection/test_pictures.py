"""Pictures: facts about their pixels."""

import pytest
import torch
from PIL import Image

pytest.importorskip("pycocotools")

from detection.detections import Detections, encode_masks
from detection.pictures import LEAST_SIDE, beside, comparison, draw_detections, label_color, zoom

GRAY = (120, 120, 120)


def image(width: int = 400, height: int = 300) -> Image.Image:
    return Image.new("RGB", (width, height), GRAY)


def found(score: float = 0.9, masks: bool = True, size: tuple[int, int] = (300, 400)) -> Detections:
    """One object of class 1 in columns 100 to 200 and rows 50 to 150, its mask the left half."""
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[0, 50:150, 100:150] = True
    return Detections(
        1,
        torch.tensor([[100.0, 50.0, 200.0, 150.0]]),
        torch.tensor([score]),
        torch.tensor([1]),
        encode_masks(mask) if masks else None,
    )


def pixel(picture: Image.Image, x: int, y: int) -> tuple[int, ...]:
    value = picture.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def test_frame_has_the_color_of_the_class() -> None:
    picture = draw_detections(image(), found(masks=False), ["cat", "dog"])
    color = label_color(1, 2)
    for x, y in ((100, 100), (199, 100), (150, 149), (150, 50)):
        assert pixel(picture, x, y) == color
    for x, y in ((97, 100), (202, 100), (150, 100), (150, 153)):
        assert pixel(picture, x, y) == GRAY


def test_name_and_score_stand_above_the_box() -> None:
    picture = draw_detections(image(), found(masks=False), ["cat", "dog"])
    label = picture.crop((100, 32, 200, 50))
    colors = {color for _, color in label.getcolors(10_000) or []}
    assert label_color(1, 2) in colors
    assert len(colors) > 2  # letters, smoothed, on the color
    other = draw_detections(image(), found(masks=False), ["cat", "cow"])
    assert label.tobytes() != other.crop((100, 32, 200, 50)).tobytes()


def test_mask_tints_its_pixels_only() -> None:
    picture = draw_detections(image(), found(), ["cat", "dog"])
    tinted = tuple(round(0.55 * gray + 0.45 * own) for gray, own in zip(GRAY, label_color(1, 2), strict=True))
    assert pixel(picture, 120, 100) == pytest.approx(tinted, abs=2)
    assert pixel(picture, 160, 100) == GRAY
    assert pixel(picture, 120, 170) == GRAY


def test_unsure_objects_are_left_out() -> None:
    plain = image().tobytes()
    assert draw_detections(image(), found(score=0.29), ["cat", "dog"]).tobytes() == plain
    assert draw_detections(image(), found(score=0.29), ["cat", "dog"], threshold=0.2).tobytes() != plain


def test_nothing_found_leaves_the_image() -> None:
    nothing = Detections(1, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), ())
    assert draw_detections(image(), nothing, ["cat", "dog"]).tobytes() == image().tobytes()


def test_the_image_itself_is_not_drawn_on() -> None:
    given = image()
    draw_detections(given, found(), ["cat", "dog"])
    assert given.tobytes() == image().tobytes()


def test_small_images_are_enlarged_with_their_boxes_and_masks() -> None:
    small = Detections(
        1, torch.tensor([[20.0, 40.0, 60.0, 80.0]]), torch.ones(1), torch.tensor([1]),
        encode_masks(torch.ones(1, 100, 128, dtype=torch.bool)),
    )  # fmt: skip
    picture = draw_detections(image(128, 100), small, ["cat", "dog"])
    assert zoom(image(128, 100)) == 3
    assert picture.size == (384, 300)
    assert max(picture.size) >= LEAST_SIDE
    assert pixel(picture, 60, 200) == label_color(1, 2)
    assert pixel(picture, 179, 200) == label_color(1, 2)
    assert pixel(picture, 383, 299) != GRAY  # the mask reaches the corner


def test_a_box_at_the_edge_of_the_image() -> None:
    edge = Detections(1, torch.tensor([[0.0, 0.0, 400.0, 300.0]]), torch.ones(1), torch.tensor([0]))
    picture = draw_detections(image(), edge, ["cat"])
    assert pixel(picture, 0, 150) == label_color(0, 1)
    assert pixel(picture, 399, 150) == label_color(0, 1)


def test_colors_of_classes_differ() -> None:
    assert len({label_color(label, 80) for label in range(80)}) == 80


def test_two_pictures_in_one() -> None:
    left, right = image(40, 30), Image.new("RGB", (50, 20), (0, 0, 255))
    whole = beside([left, right], ["float", "W4A4"])
    assert whole.width == 40 + 50 + 6
    assert whole.height == 30 + 18
    assert pixel(whole, 0, 18) == GRAY
    assert pixel(whole, 39, 47) == GRAY
    assert pixel(whole, 46, 18) == (0, 0, 255)
    assert len({color for _, color in whole.crop((0, 0, 40, 18)).getcolors(10_000) or []}) > 2


def test_detectors_are_compared_on_one_image() -> None:
    whole = comparison(image(), {"float": found(masks=False), "W4A4": found(score=0.1)}, ["cat", "dog"])
    assert whole.size == (806, 318)
    assert pixel(whole, 100, 118) == label_color(1, 2)  # left: found
    assert pixel(whole, 506, 118) == GRAY  # right: too unsure


def test_every_picture_has_a_title() -> None:
    with pytest.raises(ValueError, match="zip"):
        beside([image()], [])
