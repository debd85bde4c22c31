"""The cells of a comparison, one file each, so that an interrupted one goes on where it stopped."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isvit_lightning.data.selection import LARGEST_SEED
from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import Bits, Recipe, read_recipe, recipe_names
from isvit_lightning.storage.files import write_json
from isvit_lightning.storage.parts import differences
from isvit_lightning.system.processes import broadcast_object, rank


@dataclass(frozen=True)
class Cell:
    """One recipe at one width with one seed.

    Args:
        method: name or path of the recipe.
        recipe: the recipe.
        bits: widths.
        seed: of the draws of its steps.
    """

    method: str
    recipe: Recipe
    bits: Bits
    seed: int

    @property
    def title(self) -> str:
        """Recipe and widths, as in ``isvit w4a4``."""
        return f"{Path(self.method).stem} w{self.bits.weight}a{self.bits.activation}"

    @property
    def key(self) -> str:
        """Name of its file."""
        return f"{self.title.replace(' ', '-')}-seed{self.seed}"


@dataclass(frozen=True)
class Cells:
    """Measured cells in a folder.

    Args:
        directory: folder of the comparison.
        conditions: everything that all cells have in common: network, images, schedule.
    """

    directory: Path
    conditions: Mapping[str, Any]

    def read(self, cell: Cell, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was measured, the same in every process; None where it was not, or failed. All processes must call it.

        Args:
            cell: the cell.
            record: its recipe as plain values.

        Raises:
            IsvitError: the file was made with another recipe of this name, other images or another schedule.
        """
        content = broadcast_object(self._read(cell) if rank() == 0 else None)
        if content is None or "failed" in content["row"]:
            return None
        changed = differences(content["conditions"], self._all(record))
        if changed:
            raise IsvitError(
                f"{self.path(cell)} was made under other conditions ({changed}), expected the same for "
                "all rows: choose another trainer.default_root_dir, or remove the file."
            )
        row: dict[str, Any] = content["row"]
        return row

    def write(self, cell: Cell, record: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """Keep what was measured, in the first process."""
        if rank() == 0:
            write_json(self.path(cell), {"conditions": self._all(record), "row": dict(row)})

    def path(self, cell: Cell) -> Path:
        """File of a cell."""
        return self.directory / "cells" / f"{cell.key}.json"

    def _all(self, record: Mapping[str, Any]) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(json.dumps({**self.conditions, "recipe": record}))
        return content

    def _read(self, cell: Cell) -> dict[str, Any] | None:
        try:
            content = json.loads(self.path(cell).read_text())
            return {"conditions": dict(content["conditions"]), "row": dict(content["row"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None


def grid(methods: str, bits: str | None, seeds: str, given: Bits) -> list[Cell]:
    """All cells of a comparison, in order.

    Args:
        methods: names or paths of recipes with commas between them, or ``all``.
        bits: widths such as ``w3a3,w4a4``; None takes those of the configuration.
        seeds: whole numbers with commas between them.
        given: widths of the configuration.

    Raises:
        IsvitError: a recipe, a width or a seed is none, or stands twice.
    """
    names = recipe_names() if methods == "all" else _items(methods, "--methods")
    recipes = {name: read_recipe(name) for name in names}
    widths = [given] if bits is None else [_width(item) for item in _items(bits, "--bits")]
    numbers = [_seed(item) for item in _items(seeds, "--seeds")]
    cells = [
        Cell(name, recipe, width, seed) for width in widths for name, recipe in recipes.items() for seed in numbers
    ]
    keys = [cell.key for cell in cells]
    twice = [key for place, key in enumerate(keys) if key in keys[:place]]
    if twice:
        raise IsvitError(
            f"The cell {twice[0]} is asked for twice, expected recipe files of different names, and each width and "
            "seed once: correct --methods, --bits or --seeds."
        )
    return cells


def _items(text: str, option: str) -> Sequence[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items or len(set(items)) < len(items):
        raise IsvitError(
            f"{option} is {text!r}, expected one or more, each once, with commas between them: correct it."
        )
    return items


def _width(text: str) -> Bits:
    match = re.fullmatch(r"w([2-8])a([2-8])", text.lower())
    if match is None:
        raise IsvitError(f"--bits holds {text!r}, expected widths from 2 to 8 such as w4a4: correct it.")
    return Bits(int(match[1]), int(match[2]))


def _seed(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,10}", text) is None or int(text) > LARGEST_SEED:
        raise IsvitError(
            f"--seeds holds {text!r}, expected whole numbers below {LARGEST_SEED + 1} such as 0,1,2: correct it."
        )
    return int(text)
