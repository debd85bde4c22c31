"""Annotations: images, classes and objects."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmcv")  # the package of the module reads images with it

from detection.data.annotations import CocoAnnotations
from detection.data.reading import read_annotations
from isvit_lightning.errors import IsvitError

ANNOTATION = {"id": 1, "image_id": 5, "category_id": 9, "bbox": [0, 0, 2, 2], "area": 4}
CONTENT: dict[str, Any] = {
    "images": [
        {"id": 6, "file_name": "b.jpg", "height": 8, "width": 8},
        {"id": 5, "file_name": "c.jpg", "height": 8, "width": 8},
        {"id": 4, "file_name": "a.jpg", "height": 8, "width": 8},
    ],
    "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [ANNOTATION, {**ANNOTATION, "id": 2, "category_id": 2}, {**ANNOTATION, "id": 3, "image_id": 6}],
}


def read(tmp_path: Path, content: object) -> CocoAnnotations:
    path = tmp_path / "list.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_annotations(path, "data.evaluation_annotations")


def test_images_are_listed_by_name(tmp_path: Path) -> None:
    assert [(image.id, image.file) for image in read(tmp_path, CONTENT).images] == [
        (4, "a.jpg"),
        (6, "b.jpg"),
        (5, "c.jpg"),
    ]


def test_classes_are_categories_by_number(tmp_path: Path) -> None:
    truth = read(tmp_path, CONTENT).ground_truth([4, 5, 6], None)
    assert truth.class_names == ("cat", "dog")
    assert truth.category_ids == (2, 9)
    assert [annotation["id"] for annotation in truth.dataset["annotations"]] == [1, 2, 3]


def test_chosen_classes_and_images(tmp_path: Path) -> None:
    truth = read(tmp_path, CONTENT).ground_truth([4, 5], ["dog"])
    assert truth.category_ids == (9,)
    assert sorted(truth.image_ids) == [4, 5]
    assert [annotation["id"] for annotation in truth.dataset["annotations"]] == [1]


def test_the_order_of_the_detector_decides(tmp_path: Path) -> None:
    assert read(tmp_path, CONTENT).ground_truth([5], ["dog", "cat"]).category_ids == (9, 2)


def test_a_class_that_is_no_category(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match=r"^The class 'bird' is no category of .*, expected one of cat, dog: "):
        read(tmp_path, CONTENT).ground_truth([5], ["dog", "bird"])


def test_no_object_on_any_image(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match=r"has no object of the 2 classes on the 1 evaluated images, expected"):
        read(tmp_path, CONTENT).ground_truth([4], None)
