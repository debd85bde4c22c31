"""Classes of images from the folders they lie in."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isvit_lightning.data.class_order import ClassOrder, in_class_order
from isvit_lightning.data.files import FileSource
from isvit_lightning.data.listing import shortened
from isvit_lightning.data.loading import UNLABELED
from isvit_lightning.data.sources import LabeledImages
from isvit_lightning.errors import IsvitError, first_line

_LOG: Final = logging.getLogger(__name__)
_PARTS: Final = re.compile(
    r"(train|training|trn|trainval|val|valid|validation|minival|dev|test|testing|eval|evaluation|calib|calibration"
    r"|hold[-_ ]?out|held[-_ ]?out|unlabell?ed)([-_ ]?(set|data|split|images|imgs|a|b|\d{4}))*"
    r"|fold[-_ ]?\d+|images|imgs|masks|annotations|labels|segmentations?",
    re.IGNORECASE,
)
"""Names of parts of a data set, such as train2017 and test_set, rather than of classes."""
_EVALUATION: Final = re.compile(r"val|test|eval|dev|h[eo]ld", re.IGNORECASE)


@dataclass(frozen=True)
class ClassFolders:
    """How folders tell classes.

    Args:
        option: the option that says where the images lie, for messages.
        class_map: text file with the name of one class folder per line, in class order; None sorts the folders.
        order: how folders are sorted; None for those that every rule sorts alike.
        innermost: whether the class of an image is the innermost folder around it, as in timm, instead of the outermost
            one of those that do not hold everything.

    Raises:
        IsvitError: both a class map and an order are given.
    """

    option: str
    class_map: Path | None = None
    order: ClassOrder | None = None
    innermost: bool = False

    def __post_init__(self) -> None:
        """Refuse a class map beside an order."""
        if self.class_map is not None and self.order is not None:
            raise IsvitError(
                f"data.class_order is {self.order} and data.class_map {self.class_map}, expected one of them: leave "
                "out data.class_order, which a class map leaves nothing to."
            )

    def label(self, source: FileSource) -> LabeledImages:
        """Labels from one folder per class; none where all images lie in one folder and there is no class map.

        Raises:
            IsvitError: an image lies in no class folder, or the folders leave the classes open.
        """
        if self.class_map is None and in_one_folder(source):
            _LOG.info("%s holds images without classes: the network is compared with the float one alone", source.root)
            return LabeledImages(source, [UNLABELED] * len(source), 0)
        depth = _depth(source.names)
        self.require_classes(source)
        folders = [_class_folder(name, depth, self.innermost) for name in source.names]
        if "" in folders:
            raise IsvitError(
                f"The image {source.names[folders.index('')]} of {source.root} lies in no class folder, expected one "
                f"subfolder per class: change {self.option}."
            )
        if self.class_map is None:
            return self._sorted(source, depth, folders)
        return self._mapped(source, read_class_map(self.class_map), folders)

    def require_classes(self, source: FileSource) -> None:
        """Refuse folders that hold splits or other parts of a data set in place of classes.

        Args:
            source: images.

        Raises:
            IsvitError: two of the outermost folders, or all of the innermost ones, are such parts and not in the class
                map.
        """
        known = () if self.class_map is None else read_class_map(self.class_map)
        depth = _depth(source.names)
        for innermost in (False, True) if self.innermost else (False,):
            folders = {_class_folder(name, depth, innermost) for name in source.names} - {""}
            parts = sorted(folder for folder in folders - set(known) if _PARTS.fullmatch(folder))
            if len(parts) < (max(2, len(folders)) if innermost else 2):
                continue
            part = next(filter(_EVALUATION.match, parts), parts[0])
            where = source.root.joinpath(*source.names[0].split("/")[:depth], part)
            such = f", such as {where}," if where.is_dir() else ""
            raise IsvitError(
                f"{source.root} holds {shortened(parts)}, which are parts of a data set and no classes, expected one "
                f"subfolder per class: give one part alone{such} with "
                f"{self.option}, or name the class folders with data.class_map."
            )

    def _sorted(self, source: FileSource, depth: int, folders: Sequence[str]) -> LabeledImages:
        if not self.innermost:
            _require_full(source, depth, set(folders))
        if len(set(folders)) == 1:
            raise IsvitError(
                f"{source.root} holds the single class folder {folders[0]}, expected one subfolder per class: change "
                f"{self.option} or set data.class_map."
            )
        place = _numbered(in_class_order(set(folders), self.order, source.root))
        return LabeledImages(source, tuple(place[folder] for folder in folders), len(place), tuple(place))

    def _mapped(self, source: FileSource, classes: Sequence[str], folders: Sequence[str]) -> LabeledImages:
        place = _numbered(classes)
        unknown = sorted(set(folders) - set(classes))
        if unknown and (not self.innermost or set(unknown) == set(folders)):
            raise IsvitError(
                f"The class folder {unknown[0]} of {source.root} is not in the class map, expected one of its "
                f"{len(classes)} lines: change data.class_map or {self.option}."
            )
        if unknown:
            kept = [name for name, folder in zip(source.names, folders, strict=True) if folder in place]
            left = len(source) - len(kept)
            _LOG.info("Left out of %s: %d images of classes not in the map (%s)", source.root, left, shortened(unknown))
            source, folders = source.only(kept), [folder for folder in folders if folder in place]
        return LabeledImages(source, tuple(place[folder] for folder in folders), len(classes), tuple(classes))


def in_one_folder(source: FileSource) -> bool:
    """Whether all images lie in one folder, so that folders tell no classes."""
    return len({name.rpartition("/")[0] for name in source.names}) == 1


def read_class_map(path: Path) -> tuple[str, ...]:
    """Names of the class folders in class order, from a text file with one name per line.

    Blank lines and byte-order marks, as Windows writes them, count for nothing.

    Raises:
        IsvitError: the file is missing, empty or names a class twice.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IsvitError(
            f"{path} cannot be read ({first_line(error)}), expected a text file with one class folder per line: change "
            "data.class_map."
        ) from None
    lines = re.split(r"\r\n|\r|\n", text.replace("\ufeff", ""))
    names = tuple(name for line in lines if (name := line.strip()))
    if not names:
        raise IsvitError(f"{path} is empty, expected one class folder per line: change data.class_map.")
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise IsvitError(
            f"{path} names a class twice ({twice}), expected one class folder per line: change data.class_map."
        )
    return names


def _class_folder(name: str, depth: int, innermost: bool) -> str:
    """The folder that tells the class of an image; empty where it lies in none."""
    parts = name.split("/")[:-1]
    if len(parts) <= depth:
        return ""
    return parts[-1] if innermost else parts[depth]


def _depth(names: Sequence[str]) -> int:
    """Number of leading folders that hold all images, none of them directly."""
    folders = [name.split("/")[:-1] for name in names]
    depth = 0
    while all(len(parts) > depth + 1 and parts[depth] == folders[0][depth] for parts in folders):
        depth += 1
    return depth


def _require_full(source: FileSource, depth: int, used: set[str]) -> None:
    """Refuse a class folder without images."""
    wrapper = source.names[0].split("/")[:depth]
    parts = [folder.split("/") for folder in source.folders]
    empty = {part[depth] for part in parts if len(part) == depth + 1 and part[:depth] == wrapper} - used
    if empty:
        raise IsvitError(
            f"The class folder {min(empty)} of {source.root} holds no image, which leaves the class order open, "
            "expected images in every class folder: set data.class_map, or remove the folder."
        )


def _numbered(names: Sequence[str]) -> Mapping[str, int]:
    return {name: number for number, name in enumerate(names)}
