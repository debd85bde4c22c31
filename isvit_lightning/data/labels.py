"""Classes of images from the folders they lie in."""

from collections.abc import Sequence
from pathlib import Path

from isvit_lightning.data.files import FileSource
from isvit_lightning.data.sources import LabeledImages
from isvit_lightning.errors import IsvitError


def label_by_folder(source: FileSource, classes: Sequence[str] | None = None) -> LabeledImages:
    """Labels from one folder per class.

    Folders that hold everything, such as ``evaluation/`` in ``evaluation/cat/1.jpg``, are looked through.

    Args:
        source: images.
        classes: names of the class folders in class order; None takes those of the source, sorted.

    Raises:
        IsvitError: an image lies in no class folder, or the folders leave the classes open.
    """
    depth = _depth(source.names)
    folders = [parts[depth] if len(parts := name.split("/")) > depth + 1 else "" for name in source.names]
    if "" in folders:
        raise IsvitError(
            f"The image {source.names[folders.index('')]} of {source.root} lies in no class folder, expected one "
            "subfolder per class: change data.evaluation."
        )
    if classes is None:
        classes = _classes(source, depth, set(folders))
    place = {name: number for number, name in enumerate(classes)}
    for folder in folders:
        if folder not in place:
            raise IsvitError(
                f"The class folder {folder} of {source.root} is not in the class map, expected one of its "
                f"{len(classes)} lines: change data.class_map or data.evaluation."
            )
    return LabeledImages(source, tuple(place[folder] for folder in folders), len(classes))


def in_one_folder(source: FileSource) -> bool:
    """Whether all images lie in one folder, so that folders tell no classes."""
    return len({name.rpartition("/")[0] for name in source.names}) == 1


def read_class_map(path: Path) -> tuple[str, ...]:
    """Names of the class folders in class order, from a text file with one name per line.

    Raises:
        IsvitError: the file is missing, empty or names a class twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise IsvitError(
            f"{path} cannot be read ({error}), expected a text file with one class folder per line: change "
            "data.class_map."
        ) from None
    names = tuple(name for line in lines if (name := line.strip()))
    if not names or len(set(names)) < len(names):
        fault = "names a class twice" if names else "is empty"
        raise IsvitError(f"{path} {fault}, expected one class folder per line: change data.class_map.")
    return names


def _depth(names: Sequence[str]) -> int:
    """Number of leading folders that hold all images, none of them directly."""
    folders = [name.split("/")[:-1] for name in names]
    depth = 0
    while all(len(parts) > depth + 1 and parts[depth] == folders[0][depth] for parts in folders):
        depth += 1
    return depth


def _classes(source: FileSource, depth: int, used: set[str]) -> list[str]:
    """Class folders of the source, sorted, provided that they settle the class order."""
    wrapper = source.names[0].split("/")[:depth]
    parts = [folder.split("/") for folder in source.folders]
    empty = {part[depth] for part in parts if len(part) == depth + 1 and part[:depth] == wrapper} - used
    if empty:
        raise IsvitError(
            f"The class folder {min(empty)} of {source.root} holds no image, which leaves the class order open, "
            "expected images in every class folder: set data.class_map, or remove the folder."
        )
    if len(used) == 1:
        raise IsvitError(
            f"{source.root} holds the single class folder {min(used)}, expected one subfolder per class: change "
            "data.evaluation or set data.class_map."
        )
    return sorted(used)
