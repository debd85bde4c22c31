"""What annotation files in the format of COCO hold."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from isvit_lightning.errors import IsvitError


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
