"""Reading annotation files in the format of COCO: each entry is checked once and numbered anew where it must be."""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from detection.data.annotations import AnnotatedObject, Box, Category, CocoAnnotations, ListedImage
from detection.data.entries import Entry, Key, Origin, as_name, as_numbers, as_path, as_positive, as_whole
from detection.data.segmentations import Size, mask_of
from isvit_lightning.errors import IsvitError, first_line

_LOG = logging.getLogger(__name__)

_BOX: Final = "[left, top, width, height] in pixels, width and height above 0"


def read_annotations(path: Path, option: str) -> CocoAnnotations:
    """Read an annotation file.

    Args:
        path: JSON file in the format of COCO's instances.
        option: option that holds the path, for messages.

    Raises:
        IsvitError: there is no such file, it holds something else, or an entry cannot be meant.
    """
    return annotations_of(_content(path, option), Origin(str(path), option))


def read_images(path: Path, option: str) -> tuple[ListedImage, ...]:
    """Read the images that an annotation file lists, by file name, and nothing else of it.

    Args:
        path: JSON file in the format of COCO.
        option: option that holds the path, for messages.

    Raises:
        IsvitError: there is no such file, it lists no images, or an entry cannot be meant.
    """
    return _by_file(_images(_content(path, option), Origin(str(path), option)).values())


def annotations_of(content: Mapping[str, Any], origin: Origin) -> CocoAnnotations:
    """The annotations of a file's contents.

    Args:
        content: images, annotations and categories, as JSON has them.
        origin: the file.

    Raises:
        IsvitError: an entry cannot be meant.
    """
    images, categories = _images(content, origin), _categories(content, origin)
    objects, strangers = list[AnnotatedObject](), 0
    for entry in _entries(content, "annotations", origin):
        image = images.get(entry.read_key("image_id"))
        category = categories.get(entry.read_key("category_id"))
        if category is None:
            raise entry.refusal("category_id", "the id of one of its categories")
        box, is_crowd = entry.read("bbox", _box, _BOX), _is_crowd(entry)
        mask = mask_of(entry)
        if image is None:
            strangers += 1
        else:
            objects.append(AnnotatedObject(entry.name, image.id, category.id, box, is_crowd, mask))
    if strangers:
        count = len(objects) + strangers
        _LOG.info(
            "%s: %d of %d annotations are of images that it does not list and left out", origin.title, strangers, count
        )
    if objects and all(
        left + width <= 1 and top + height <= 1 for left, top, width, height in (each.box for each in objects)
    ):
        raise origin.refusal("no box is larger than a pixel", f"{_BOX}, not in shares of the image")
    return CocoAnnotations(origin, _by_file(images.values()), tuple(categories.values()), tuple(objects))


def _content(path: Path, option: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())  # of bytes, so that it sees a byte-order mark and other encodings
        reason = None if isinstance(content, dict) else f"it holds a {type(content).__name__}"
    except (OSError, ValueError, RecursionError) as error:
        content = None
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else first_line(error)
    if content is None or reason is not None:
        raise IsvitError(
            f"The annotations {path} cannot be read ({reason}), expected JSON in COCO's format with images, "
            f"annotations and categories: change {option}."
        )
    return content


def _entries(content: Mapping[str, Any], key: str, origin: Origin) -> Iterable[Entry]:
    listed = content.get(key)
    if not isinstance(listed, list):
        raise Entry(origin, "the outermost object", content).refusal(key, "a list: images, annotations, categories")
    kind = {"images": "image", "categories": "category", "annotations": "annotation"}[key]
    return (Entry.of(origin, kind, place, each) for place, each in enumerate(listed))


def _images(content: Mapping[str, Any], origin: Origin) -> dict[Key, ListedImage]:
    """Listed images by id."""
    found: dict[Key, tuple[str, Size | None]] = {}
    owners: dict[str, Key] = {}
    for entry in _entries(content, "images", origin):
        given, file = entry.read_key("id"), entry.read("file_name", as_path, "the path of a picture")
        image = (file, _size(entry))
        if found.setdefault(given, image) != image:
            raise entry.refusal("id", f"another one than that of the image {found[given][0]}")
        if owners.setdefault(file, given) != given:
            raise entry.refusal("file_name", f"another one than that of the image with the id {owners[file]}")
    return {given: ListedImage(number, *found[given], given) for given, number in _numbers(list(found)).items()}


def _categories(content: Mapping[str, Any], origin: Origin) -> dict[Key, Category]:
    """Categories by id, in the order of the file."""
    names: dict[Key, str] = {}
    for entry in _entries(content, "categories", origin):
        given, name = entry.read_key("id"), entry.read("name", as_name, "a name")
        if names.setdefault(given, name) != name:
            raise entry.refusal("id", f"another one than that of the category {names[given]}")
    return {given: Category(number, names[given]) for given, number in _numbers(list(names)).items()}


def _numbers(given: Sequence[Key]) -> dict[Key, int]:
    """A number for each id: itself where all are numbers, else its place."""
    whole = [each for each in given if isinstance(each, int)]
    return dict(zip(given, whole if len(whole) == len(given) else range(1, len(given) + 1), strict=True))


def _size(entry: Entry) -> Size | None:
    height, width = (
        entry.read(side, as_positive, "pixels, 1 or more") if entry.has(side) else None for side in ("height", "width")
    )
    return None if height is None or width is None else (height, width)


def _box(value: Any) -> Box | None:
    numbers = as_numbers(value)
    if numbers is None or len(numbers) != 4:
        return None
    left, top, width, height = numbers
    usable = width > 0 and height > 0 and math.isfinite(left + width) and math.isfinite(top + height)
    return (left, top, width, height) if usable else None


def _is_crowd(entry: Entry) -> bool:
    value = entry.content.get("iscrowd")
    number = int(value) if isinstance(value, bool) else 0 if value is None else as_whole(value)
    if number not in (0, 1):
        raise entry.refusal("iscrowd", "0 or 1")
    return number == 1


def _by_file(images: Iterable[ListedImage]) -> tuple[ListedImage, ...]:
    return tuple(sorted(images, key=lambda image: image.file))
