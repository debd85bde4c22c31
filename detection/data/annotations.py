"""What annotation files in the format of COCO hold, checked and numbered."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detection.data.entries import Key, Origin
from detection.data.segmentations import Mask, Size
from isvit_lightning.errors import IsvitError

_LOG = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
"""Left edge, top edge, width and height in pixels."""


@dataclass(frozen=True)
class ListedImage:
    """An image that an annotation file lists.

    Args:
        id: its number.
        file: its path relative to the folder of the images.
        size: height and width in pixels; None where the file does not tell them.
        given: its id in the file.
    """

    id: int
    file: str
    size: Size | None
    given: Key


@dataclass(frozen=True)
class Category:
    """A category of an annotation file.

    Args:
        id: its number.
        name: what it is called.
    """

    id: int
    name: str


@dataclass(frozen=True)
class AnnotatedObject:
    """An object on an image.

    Args:
        name: what it is called in messages, such as ``annotation 3 (id 17)``.
        image: number of the image.
        category: number of the category.
        box: the box around it, of a positive width and height.
        is_crowd: whether it is a region of many objects, which is not to be found.
        mask: its pixels; None where the file does not tell them.
    """

    name: str
    image: int
    category: int
    box: Box
    is_crowd: bool
    mask: Mask | None


@dataclass(frozen=True)
class GroundTruth:
    """What is to be found on the evaluated images.

    Args:
        dataset: the contents of an annotation file: images, annotations numbered from 1, categories; masks, where they
            are known, as run lengths of their image's size.
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
        origin: the file.
        images: the listed images, by file name.
        categories: in the order of the file.
        objects: in the order of the file, each on a listed image and of a listed category.
    """

    origin: Origin
    images: tuple[ListedImage, ...]
    categories: tuple[Category, ...]
    objects: tuple[AnnotatedObject, ...]

    def classes(self, names: Sequence[str] | None) -> tuple[Category, ...]:
        """The category of each of the detector's labels.

        Args:
            names: the detector's classes in its order; None takes all categories in the order of the file, where it is
                that of their numbers.

        Raises:
            IsvitError: a class is no category, more than one, or named twice; or the order is not told.
        """
        chosen = [each.name for each in self.categories] if names is None else list(names)
        if not chosen:
            raise IsvitError("data.classes names no class, expected one or more: name some or leave it out for all.")
        for name in chosen:
            same = [each for each in self.categories if each.name == name]
            if not same:
                raise IsvitError(
                    f"The class {name!r} is no category of {self.origin.title}, expected one of "
                    f"{', '.join(each.name for each in self.categories)}: correct data.classes or change "
                    f"{self.origin.option}."
                )
            if len(same) > 1:
                raise self.origin.refusal(
                    f"the categories {' and '.join(str(each.id) for each in same)} are both called {name!r}",
                    "a name of its own for each class",
                )
            if chosen.count(name) > 1:
                raise IsvitError(
                    f"data.classes names {name!r} {chosen.count(name)} times, expected each class once: correct it."
                )
        if names is None:
            self._require_one_order()
        return tuple(next(each for each in self.categories if each.name == name) for name in chosen)

    def ground_truth(
        self, images: Collection[int], names: Sequence[str] | None, sizes: Mapping[int, Size] | None = None
    ) -> GroundTruth:
        """The annotations of some images and classes.

        Args:
            images: numbers of the images.
            names: the detector's classes in its order, as for :meth:`classes`.
            sizes: height and width of the pictures as they are read; None takes those that the file tells.

        Raises:
            IsvitError: a class is no category, a picture has another size than the file says, an object is not on its
                picture, boxes are given by two corners, or no object of these classes is on the images.
        """
        classes, wanted = self.classes(names), set(images)
        numbers = {each.id for each in classes}
        listed = [image for image in self.images if image.id in wanted]
        known = {image.id: self._size(image, sizes) for image in listed}
        objects = [each for each in self.objects if each.image in wanted and each.category in numbers]
        if all(each.is_crowd for each in objects):
            raise IsvitError(
                f"{self.origin.title} has no object of the {len(classes)} classes on the {len(wanted)} evaluated "
                "images, expected at least one, or no precision can be told: change data.evaluation_annotations or "
                "raise data.evaluation_images."
            )
        if _are_corners([(each.box, known[each.image]) for each in objects]):
            raise self.origin.refusal(
                "boxes reach beyond their images, while all lie inside as [left, top, right, bottom]",
                "[left, top, width, height]",
            )
        self._tell_masks(objects)
        dataset = {
            "images": [
                {"id": image.id, "file_name": image.file, "height": known[image.id][0], "width": known[image.id][1]}
                for image in listed
            ],
            "categories": [{"id": each.id, "name": each.name} for each in classes],
            "annotations": [
                _annotation(place + 1, each, known[each.image], self.origin) for place, each in enumerate(objects)
            ],
        }
        return GroundTruth(dataset, tuple(each.id for each in classes), tuple(each.name for each in classes))

    def _require_one_order(self) -> None:
        """Refuse to guess whether a detector counts its classes by their place in the file or by their numbers."""
        ordered = sorted(self.categories, key=lambda each: each.id)
        if list(self.categories) != ordered:
            raise IsvitError(
                f"{self.origin.title} lists its categories as {_names(self.categories)} but numbers them as "
                f"{_names(ordered)}, expected one order: name the detector's classes in its order with data.classes."
            )

    def _size(self, image: ListedImage, sizes: Mapping[int, Size] | None) -> Size:
        size = image.size if sizes is None else sizes[image.id]
        if size is None:
            raise self.origin.refusal(f"the image {image.file} has no height and width", "both")
        if image.size is not None and image.size != size:
            height, width = image.size
            raise self.origin.refusal(
                f"the image {image.file} is {height} pixels high and {width} wide but the picture, read upright, "
                f"{size[0]} and {size[1]}",
                "annotations of the picture as it is read",
            )
        return size

    def _tell_masks(self, objects: Sequence[AnnotatedObject]) -> None:
        """Say where masks cannot be measured."""
        without = sum(each.mask is None for each in objects)
        if without:
            rest = "box AP is measured alone" if without == len(objects) else "mask AP does not judge their boxes"
            _LOG.info("%s: %d of %d objects have no mask; %s", self.origin.title, without, len(objects), rest)


def _are_corners(boxes: Sequence[tuple[Box, Size]]) -> bool:
    """Whether boxes, on pictures of some sizes, make sense only where their last two numbers are an edge."""
    beyond = any(left + width > size[1] + 1 or top + height > size[0] + 1 for (left, top, width, height), size in boxes)
    return beyond and all(
        0 <= left < right <= size[1] and 0 <= top < bottom <= size[0] for (left, top, right, bottom), size in boxes
    )


def _annotation(number: int, found: AnnotatedObject, size: Size, origin: Origin) -> dict[str, Any]:
    """An object in COCO's format.

    Raises:
        IsvitError: it is not on its picture.
    """
    (left, top, width, height), (down, across) = found.box, size
    if left >= across or top >= down or left + width <= 0 or top + height <= 0:
        raise origin.refusal(
            f"{found.name} has the box {list(found.box)} outside its image of height {down} and width {across}",
            "[left, top, width, height] in pixels of the image",
        )
    entry = {
        "id": number,  # pycocotools takes an object with the number 0 for one that was not found
        "image_id": found.image,
        "category_id": found.category,
        "bbox": list(found.box),
        "area": width * height,  # decides nothing while objects of all sizes are measured together
        "iscrowd": int(found.is_crowd),
    }
    if found.mask is None:
        return entry
    own = found.mask.size
    if own is not None and own != size:
        raise origin.refusal(
            f"{found.name} has a mask of height and width {list(own)} on an image of {list(size)}",
            "the same size",
        )
    bounds = found.mask.bounds
    apart = bounds[0] > left + width or bounds[1] > top + height or bounds[2] < left or bounds[3] < top
    # Far outside, drawing takes forever.
    far = min(bounds) < -max(size) or max(bounds) > 2 * max(size)
    if apart or far:
        raise origin.refusal(
            f"{found.name} has a mask from {list(bounds[:2])} to {list(bounds[2:])} and a box from {[left, top]} to "
            f"{[left + width, top + height]} on an image of height {down} and width {across}",
            "both in pixels of the image and in one place",
        )
    return {**entry, "segmentation": found.mask.encoded(size)}


def _names(categories: Sequence[Category]) -> str:
    return ", ".join(each.name for each in categories)
