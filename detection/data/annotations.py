"""Annotation files in the format of COCO."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isvit_lightning.errors import IsvitError, first_line


@dataclass(frozen=True)
class ListedImage:
    """An image that an annotation file lists.

    Args:
        id: its number in the file.
        file: its path relative to the folder of the images.
    """

    id: int
    file: str


@dataclass(frozen=True)
class GroundTruth:
    """What is to be found on the evaluated images.

    Args:
        dataset: the contents of an annotation file: images, annotations, categories; masks as polygons or run lengths.
        category_ids: category of each of the detector's labels, in order.
        class_names: name of each label.
    """

    dataset: dict[str, Any]
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]

    @property
    def image_ids(self) -> list[int]:
        """Numbers of the evaluated images."""
        return [int(image["id"]) for image in self.dataset["images"]]


@dataclass(frozen=True)
class CocoAnnotations:
    """The contents of an annotation file.

    Args:
        origin: what it is called in messages.
        dataset: the contents.
    """

    origin: str
    dataset: dict[str, Any]

    @classmethod
    def read(cls, path: Path, option: str) -> "CocoAnnotations":
        """Read an annotation file.

        Args:
            path: JSON file in the format of COCO's instances.
            option: option that holds the path, for messages.

        Raises:
            IsvitError: there is no such file, or it holds something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            _require_coco(content)
        except (OSError, ValueError, TypeError) as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else first_line(error)
            raise IsvitError(
                f"The annotations {path} cannot be read ({reason}), expected JSON in COCO's format with images, "
                f"annotations and categories: change {option}."
            ) from None
        return cls(str(path), content)

    @property
    def images(self) -> tuple[ListedImage, ...]:
        """The listed images, by file name."""
        listed = (ListedImage(image["id"], image["file_name"]) for image in self.dataset["images"])
        return tuple(sorted(listed, key=lambda image: image.file))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the categories, by number."""
        return tuple(str(category["name"]) for category in self._categories)

    def ground_truth(self, images: Collection[int], class_names: Sequence[str] | None) -> GroundTruth:
        """The annotations of some images and classes.

        Args:
            images: numbers of the images.
            class_names: the detector's classes in its order; None takes all categories, by number.

        Raises:
            IsvitError: a class is no category, or no object of these classes is on the images.
        """
        numbers = {str(category["name"]): int(category["id"]) for category in self._categories}
        names = self.class_names if class_names is None else tuple(class_names)
        strangers = [name for name in names if name not in numbers]
        if strangers:
            raise IsvitError(
                f"The class {strangers[0]!r} is no category of {self.origin}, expected one of {', '.join(numbers)}: "
                "correct data.classes or change data.evaluation_annotations."
            )
        category_ids = tuple(numbers[name] for name in names)
        wanted, known = set(images), set(category_ids)
        dataset = {
            "images": [image for image in self.dataset["images"] if image["id"] in wanted],
            "categories": [category for category in self._categories if category["id"] in known],
            "annotations": [
                annotation
                for annotation in self.dataset["annotations"]
                if annotation["image_id"] in wanted and annotation["category_id"] in known
            ],
        }
        if not dataset["annotations"]:
            raise IsvitError(
                f"{self.origin} has no object of the {len(names)} classes on the {len(wanted)} evaluated images, "
                "expected at least one, or no precision can be told: change data.evaluation_annotations or raise "
                "data.evaluation_images."
            )
        return GroundTruth(dataset, category_ids, names)

    @property
    def _categories(self) -> list[dict[str, Any]]:
        return sorted(self.dataset["categories"], key=lambda category: int(category["id"]))


def _require_coco(content: Any) -> None:
    """Look up every key that is used later.

    Raises:
        ValueError: one is missing.
    """
    for key, fields in (
        ("images", ("id", "file_name", "height", "width")),
        ("categories", ("id", "name")),
        ("annotations", ("id", "image_id", "category_id", "bbox", "area")),
    ):
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"it lacks {key}")
        for entry in content[key]:
            missing = [field for field in fields if field not in entry]
            if missing:
                raise ValueError(f"one of its {key} lacks {missing[0]}")
