"""Masks as annotation files hold them: polygons, and run lengths, compressed or not."""

from dataclasses import dataclass
from typing import Any, Final, cast

from pycocotools import mask as run_lengths

from detection.data.entries import Entry, as_numbers, as_positive, as_whole

Size = tuple[int, int]
"""Height and width in pixels."""

Bounds = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels."""

_EXPECTED: Final = (
    "polygons [[x1, y1, x2, y2, x3, y3, ...], ...], or run lengths {size: [height, width], counts: ...} that make up "
    "this size"
)


@dataclass(frozen=True)
class Polygons:
    """A mask by its outlines.

    Args:
        parts: ``x1, y1, x2, y2, ...`` of each outline, three points or more.
    """

    parts: tuple[tuple[float, ...], ...]

    @property
    def size(self) -> None:
        """None: outlines do not tell the size of their picture."""
        return

    @property
    def bounds(self) -> Bounds:
        """The least box around all points."""
        across = [x for part in self.parts for x in part[::2]]
        down = [y for part in self.parts for y in part[1::2]]
        return min(across), min(down), max(across), max(down)

    def encoded(self, size: Size) -> dict[str, Any]:
        """COCO's compressed run lengths on a picture of ``size``."""
        drawn = run_lengths.frPyObjects([list(part) for part in self.parts], *size)
        return cast("dict[str, Any]", run_lengths.merge(drawn))


@dataclass(frozen=True)
class RunLengths:
    """A mask by the lengths of its runs, column by column, the first outside the object.

    Args:
        size: of the picture.
        counts: pixels of each run, together those of the picture, at least one inside the object.
    """

    size: Size
    counts: tuple[int, ...]

    @property
    def bounds(self) -> Bounds:
        """The least box around all pixels."""
        left, top, width, height = (float(each) for each in run_lengths.toBbox(self.encoded(self.size)))
        return left, top, left + width, top + height

    def encoded(self, size: Size) -> dict[str, Any]:
        """COCO's compressed run lengths on a picture of ``size``, which is its own."""
        content = {"size": list(size), "counts": list(self.counts)}
        return cast("dict[str, Any]", run_lengths.frPyObjects(content, *size))


Mask = Polygons | RunLengths


def mask_of(entry: Entry) -> Mask | None:
    """The mask of an annotation; None where it has none, or one without a pixel or an outline.

    Raises:
        IsvitError: it cannot be meant.
    """
    value = entry.content.get("segmentation")
    if value is None or value in ([], {}):
        return None
    mask = _polygons(value) if isinstance(value, list) else _runs(value) if isinstance(value, dict) else None
    if mask is None:
        raise entry.refusal("segmentation", _EXPECTED)
    if isinstance(mask, Polygons):
        # Two points enclose nothing, and pycocotools would take them for a box.
        mask = Polygons(tuple(part for part in mask.parts if len(part) >= 6))
        return mask if mask.parts else None
    return mask if any(mask.counts[1::2]) else None


def _polygons(value: list[Any]) -> Polygons | None:
    # A single outline is often written without the outer list.
    only = as_numbers(value)
    parts = [as_numbers(part) for part in value] if only is None else [only]
    known = tuple(part for part in parts if part is not None and len(part) % 2 == 0)
    return Polygons(known) if len(known) == len(parts) else None


def _runs(value: dict[str, Any]) -> RunLengths | None:
    sides, counts = value.get("size"), value.get("counts")
    if not isinstance(sides, list) or len(sides) != 2:
        return None
    height, width = (as_positive(side) for side in sides)
    runs = [as_whole(run) for run in counts] if isinstance(counts, list) else _decompressed(counts)
    known = tuple(run for run in runs if run is not None and run >= 0)
    if height is None or width is None or len(known) < len(runs) or sum(known) != height * width:
        return None
    return RunLengths((height, width), known)


def _decompressed(text: Any) -> list[int]:
    """Lengths of compressed runs; [-1] where ``text`` holds none. The decoder of pycocotools does not check."""
    runs: list[int] = []
    value = shift = 0
    for code in (ord(letter) - 48 for letter in text) if isinstance(text, str) else (-1,):
        # Five bits of the number in each letter, lowest first, and one that tells whether more follow.
        if not 0 <= code < 64 or shift > 60:
            return [-1]
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            value -= (code & 0x10) << (shift - 4)  # the highest bit is the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))  # told as difference to the run before the last
            value = shift = 0
    return [-1] if shift else runs
