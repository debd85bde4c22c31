"""What a file tells of itself: preprocessing, classes, bits, recipe and the packed file that it was made of."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from isvit_lightning.export.artifact import QuantizedNetwork

FORMAT = "isvit-onnx-1"
PREFIX = "isvit."
"""Of the names of its texts in a file."""


def metadata_of(
    network: QuantizedNetwork, classes: Sequence[str] | None, packed_hash: str, **more: Any
) -> dict[str, str]:
    """Texts by name, each a value as JSON.

    Args:
        network: what is exported.
        classes: their names in the order of the logits; None where they are not known.
        packed_hash: of the packed file.
        **more: further values.
    """
    preprocessing = network.preprocessing and dataclasses.asdict(network.preprocessing)
    values = {
        "format": FORMAT,
        "preprocessing": preprocessing,
        "classes": None if classes is None else list(classes),
        "bits": network.record.get("bits"),
        "recipe": network.record.get("recipe"),
        "packed_hash": packed_hash,
        **more,
    }
    return {PREFIX + name: json.dumps(value, sort_keys=True) for name, value in values.items()}


def decoded(texts: Mapping[str, str]) -> dict[str, Any]:
    """Values by name of the texts of a file; those of other programs are left out."""
    own = {name.removeprefix(PREFIX): text for name, text in texts.items() if name.startswith(PREFIX)}
    return {name: json.loads(text) for name, text in own.items()}
