"""The contents of a clean annotation file, and what detections of its objects measure on any form of it."""

import copy
from typing import Any

import torch

from detection.data.annotations import CocoAnnotations
from detection.data.entries import Origin
from detection.data.reading import annotations_of
from detection.detections import Detections, encode_masks
from detection.evaluation import average_precision

HEIGHT, WIDTH = 40, 50
ORIGIN = Origin("list.json", "data.evaluation_annotations")

_OBJECTS = (
    # image, category, left, top, width, height
    (11, 2, 4, 6, 20, 12),
    (11, 5, 26, 10, 14, 22),
    (12, 5, 2, 3, 30, 30),
    (12, 5, 30, 20, 12, 14),
    (14, 2, 10, 10, 25, 20),
)
_FILES = {11: "c.png", 12: "a.png", 13: "d.png", 14: "b.png"}
_NAMES = {2: "cat", 5: "dog"}
# How far detections lie beside their objects, how sure they are, and which of them name another class.
_SHIFTS, _SCORES, _WRONG = (1, 0, 3, 2, 1), (0.9, 0.6, 0.8, 0.7, 0.95), (3,)


def clean() -> dict[str, Any]:
    """Five objects of two classes, polygons and run lengths, on four images of which one is empty."""
    annotations = [
        {
            "id": place + 1,
            "image_id": image,
            "category_id": category,
            "bbox": [left, top, width, height],
            "area": width * height,
            "iscrowd": 0,
            "segmentation": rectangle(left, top, width, height),
        }
        for place, (image, category, left, top, width, height) in enumerate(_OBJECTS)
    ]
    images = [{"id": given, "file_name": file, "height": HEIGHT, "width": WIDTH} for given, file in _FILES.items()]
    categories = [{"id": given, "name": name} for given, name in _NAMES.items()]
    return copy.deepcopy({"images": images, "annotations": annotations, "categories": categories})


def rectangle(left: int, top: int, width: int, height: int) -> list[list[int]]:
    """A rectangle as a polygon."""
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(segmentation: list[list[int]]) -> dict[str, Any]:
    """A rectangle's polygon as compressed run lengths, in the form that JSON holds."""
    left, top, right, _, _, bottom, *_ = segmentation[0]
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    encoded = encode_masks(mask)[0]
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


def read(content: dict[str, Any]) -> CocoAnnotations:
    """The annotations of a file's contents."""
    return annotations_of(content, ORIGIN)


def measured(content: dict[str, Any], names: list[str] | None = None) -> dict[str, float]:
    """Box and mask AP of the same detections, whatever images and categories are called in ``content``."""
    annotations = read(content)
    truth = annotations.ground_truth([image.id for image in annotations.images], names)
    numbers = {image.file: image.id for image in annotations.images}
    found = [_found(numbers[file], given, truth.class_names) for given, file in _FILES.items()]
    return average_precision(found, truth)


def _found(number: int, given: int, names: tuple[str, ...]) -> Detections:
    """What is found on the image that the clean file calls ``given``."""
    mine = [place for place, each in enumerate(_OBJECTS) if each[0] == given]
    boxes, labels = torch.zeros(len(mine), 4), []
    masks = torch.zeros(len(mine), HEIGHT, WIDTH, dtype=torch.bool)
    for row, place in enumerate(mine):
        _, category, left, top, width, height = _OBJECTS[place]
        left += _SHIFTS[place]
        boxes[row] = torch.tensor([left, top, left + width, top + height])
        masks[row, top : top + height, left : left + width] = True
        label = names.index(_NAMES[category])
        labels.append(1 - label if place in _WRONG else label)
    scores = torch.tensor([_SCORES[place] for place in mine])
    return Detections(number, boxes, scores, torch.tensor(labels, dtype=torch.int64), encode_masks(masks))
