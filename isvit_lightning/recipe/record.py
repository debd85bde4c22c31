"""Choices as plain values, to be stored as a record and compared; nothing is built from them again."""

import dataclasses
from typing import Any


def record_of(choice: Any) -> Any:
    """``choice`` in texts, numbers, lists and mappings; a dataclass tells its type.

    Args:
        choice: a recipe, or any part of one.
    """
    if dataclasses.is_dataclass(choice) and not isinstance(choice, type):
        values = {entry.name: record_of(getattr(choice, entry.name)) for entry in dataclasses.fields(choice)}
        return {"type": type(choice).__name__, **values}
    if isinstance(choice, dict):
        return {str(key): record_of(value) for key, value in choice.items()}
    if isinstance(choice, list | tuple):
        return [record_of(value) for value in choice]
    return choice
