"""Reading annotation files: a sentence for each that cannot be read."""

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


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match=r"\(there is no such file\), expected JSON .* change data.evaluation_annot"):
        read_annotations(tmp_path / "absent.json", "data.evaluation_annotations")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ([1], "it lacks images"),
        ({"images": []}, "it lacks categories"),
        ({**CONTENT, "images": [{"id": 1}]}, "one of its images lacks file_name"),
        ({**CONTENT, "images": 3}, "not iterable"),
        ({**CONTENT, "annotations": [{"id": 1}]}, "one of its annotations lacks image_id"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, content: object, reason: str) -> None:
    with pytest.raises(IsvitError, match=reason) as error:
        read(tmp_path, content)
    assert "change data.evaluation_annotations" in str(error.value)
