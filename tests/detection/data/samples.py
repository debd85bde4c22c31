"""A small set in COCO's format on disk, and the preprocessing of a detector."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detection.data import CocoDataModule
from detection.data.preprocessing import DetectorPreprocessing

PREPROCESSING = DetectorPreprocessing(input_size=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1), divisor=8)
SIZES = ((20, 30), (30, 20), (16, 16))
"""Height and width of the images of a set, in turn."""


def write_image(path: Path, size: tuple[int, int], seed: int) -> None:
    """Write random pixels as a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_set(root: Path, name: str, count: int, first: int, objects: bool = True) -> Path:
    """Write ``<name>/*.jpg`` and ``<name>.json``; every second image holds one object, from the first one on.

    Args:
        root: folder of both.
        name: of the set.
        count: number of images.
        first: number of the first one, in the names too.
        objects: whether there are any.

    Returns:
        The annotation file.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(first, first + count):
        height, width = SIZES[number % 3]
        write_image(root / name / f"{number:04d}.jpg", (height, width), number)
        images.append({"id": number, "file_name": f"{number:04d}.jpg", "height": height, "width": width})
        if objects and (number - first) % 2 == 0:
            box = [2.0, 3.0, 6.0, 8.0]
            polygon = [[2.0, 3.0, 8.0, 3.0, 8.0, 11.0, 2.0, 11.0]]
            annotations.append(
                {"id": number + 1, "image_id": number, "category_id": 7 if number % 4 else 3, "bbox": box, "area": 48}
                | {"iscrowd": 0, "segmentation": polygon}
            )
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    path = root / f"{name}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def coco_data(root: Path, **options: Any) -> CocoDataModule:
    """A data module over ``train`` and ``val`` below ``root``, attached."""
    given = {
        "calibration": str(root / "train"),
        "calibration_annotations": str(root / "train.json"),
        "evaluation": str(root / "val"),
        "evaluation_annotations": str(root / "val.json"),
        "calibration_images": 3,
        "canvas": (16, 24),
        "scale": (32, 24),
        "batch_size": 2,
        "workers": 0,
        "selection": "first",
        **options,
    }
    data = CocoDataModule(**given)
    data.attach(PREPROCESSING)
    return data
