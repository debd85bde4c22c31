"""In which order the folders of images name classes."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from isvit_lightning.errors import IsvitError

ClassOrder = Literal["plain", "natural"]
_SHOWN: Final = 3


def natural_key(name: str) -> Any:
    """Key that sorts names as timm does: numbers by their value, and capitals as small letters.

    Args:
        name: of a file or folder; names that differ in nothing else keep their plain order.
    """
    parts: list[Any] = re.split(r"(\d+)", name.lower())
    # A number by its length, because Python reads none of thousands of digits.
    parts[1::2] = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return parts, name


def in_class_order(names: Collection[str], order: ClassOrder | None, root: Path) -> list[str]:
    """Names of class folders, sorted.

    Args:
        names: of the folders.
        order: plain compares characters, as torchvision does, natural as timm does; None takes either where both are
            the same.
        root: where the folders lie, for messages.

    Raises:
        IsvitError: the orders differ and none is given.
    """
    plain, natural = sorted(names), sorted(names, key=natural_key)
    if order is None and plain != natural:
        raise IsvitError(
            f"The {len(plain)} class folders of {root} sort as {_from_difference(plain, natural)} by their characters "
            f"(plain) but as {_from_difference(natural, plain)} by numbers and without regard to capitals (natural), "
            "expected the order in which the network was trained: set data.class_order to plain, as torchvision "
            "sorts, or to natural, as timm does, or name the classes in order with data.class_map."
        )
    return natural if order == "natural" else plain


def _from_difference(names: Sequence[str], others: Sequence[str]) -> str:
    """Some names around the first one in which two orders differ."""
    first = next(place for place, (one, other) in enumerate(zip(names, others, strict=True)) if one != other)
    start = max(0, first - 1)
    end = start + _SHOWN
    shown = [*(["…"] if start else []), *names[start:end], *(["…"] if end < len(names) else [])]
    return ", ".join(shown)
