"""Entries of an annotation file, and a sentence for each value that cannot be meant."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar

from isvit_lightning.errors import IsvitError

Key = int | str
"""An id as a file gives it: a whole number or a text."""

_Value = TypeVar("_Value")

_SHOWN: Final = 60  # characters of a wrong value in a message
_DIGITS: Final = 18  # of a number that every tool can hold


@dataclass(frozen=True)
class Origin:
    """Where annotations come from.

    Args:
        title: what the file is called in messages.
        option: option that names it.
    """

    title: str
    option: str

    def refusal(self, what: str, expected: str) -> IsvitError:
        """The error that tells that something in the file cannot be meant."""
        return IsvitError(f"In {self.title}, {what}, expected {expected}: correct it or change {self.option}.")


@dataclass(frozen=True)
class Entry:
    """One entry of a list of the file.

    Args:
        origin: the file.
        name: what the entry is called in messages, such as ``annotation 3 (id 17)``.
        content: its keys and values.
    """

    origin: Origin
    name: str
    content: Mapping[str, Any]

    @classmethod
    def of(cls, origin: Origin, kind: str, place: int, content: Any) -> "Entry":
        """The entry at a place of a list.

        Args:
            origin: the file.
            kind: what the list holds, in the singular.
            place: counted from 0.
            content: what stands there.

        Raises:
            IsvitError: it has no keys.
        """
        name = f"{kind} {place + 1}"
        if not isinstance(content, dict):
            raise origin.refusal(f"{name} is {_shown(content)}", "an object with keys and values")
        given = as_key(content.get("id"))
        return cls(origin, name if given is None else f"{name} (id {given})", content)

    def has(self, key: str) -> bool:
        """Whether a key is there and not null."""
        return self.content.get(key) is not None

    def read(self, key: str, convert: Callable[[Any], _Value | None], expected: str) -> _Value:
        """The value of a key.

        Args:
            key: which one.
            convert: gives the value, or None where it cannot be meant.
            expected: what can be meant, for the message.

        Raises:
            IsvitError: the key is missing, or its value cannot be meant.
        """
        value = convert(self.content.get(key))
        if value is None:
            raise self.refusal(key, expected)
        return value

    def read_key(self, key: str) -> Key:
        """The id that a key holds.

        Raises:
            IsvitError: the key is missing, or its value is no id.
        """
        found = as_key(self.content.get(key))
        if found is None:
            raise self.refusal(key, "a whole number or a text")
        return found

    def refusal(self, key: str, expected: str) -> IsvitError:
        """The error that tells that the value of a key cannot be meant, or that there is none."""
        told = f"has {key} {_shown(self.content[key])}" if key in self.content else f"lacks {key}"
        return self.origin.refusal(f"{self.name} {told}", expected)


def as_key(value: Any) -> Key | None:
    """An id; a text of digits is the number."""
    number = as_whole(value)
    return as_text(value) if number is None else number


def as_text(value: Any) -> str | None:
    """A text that can be printed and is not empty."""
    if not isinstance(value, str) or not value.strip():
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair of escapes
        return None
    return value


def as_path(value: Any) -> str | None:
    """A relative path in its shortest form, without a leading ``./``."""
    text = as_text(value)
    return None if text is None else PurePosixPath(text).as_posix()


def as_name(value: Any) -> str | None:
    """A name; a number is its digits."""
    number = None if isinstance(value, str) else as_whole(value)
    return as_text(value) if number is None else str(number)


def as_whole(value: Any) -> int | None:
    """A whole number, also one with a point and zeros or as a text of digits."""
    if isinstance(value, str):
        digits = value.removeprefix("-")
        return int(value) if digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS else None
    number = as_number(value)
    whole = number is not None and number == math.floor(number) and abs(number) < 10**_DIGITS
    return int(value) if whole else None


def as_positive(value: Any) -> int | None:
    """A whole number of 1 or more."""
    number = as_whole(value)
    return None if number is None or number < 1 else number


def as_number(value: Any) -> float | None:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_numbers(value: Any) -> tuple[float, ...] | None:
    """A list of finite numbers, which may be empty."""
    if not isinstance(value, list):
        return None
    numbers = [as_number(each) for each in value]
    return None if None in numbers else tuple(number for number in numbers if number is not None)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
