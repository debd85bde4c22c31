"""The table of a comparison: on the terminal, as Markdown, CSV and JSON."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from isvit_lightning.run.cells import Cell
from isvit_lightning.run.unseen import COLUMNS
from isvit_lightning.storage.files import write_atomically, write_json

_COSTS = (("seconds", "seconds"), ("float_block_steps", "float block steps"), ("peak_memory_bytes", "peak GB"))
_AUDIT = ("softmax values", "codes beyond", "float operands", "ranges")


@dataclass
class Comparison:
    """Rows of recipes and widths, each over its seeds.

    Args:
        network: name of the network.
        columns: metrics, each with its title.
        images: evaluation images.
        rows: what each cell measured, by recipe and widths.
        float_row: what the float network measured.
        held_out: calibration images that were held out to choose a recipe on; 0 for none.
    """

    network: str
    columns: tuple[tuple[str, str], ...]
    images: int
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    float_row: dict[str, float] = field(default_factory=dict)
    held_out: int = 0

    def set_float(self, metrics: Mapping[str, float]) -> None:
        """Metrics of the float network."""
        self.float_row = dict(metrics)

    def add(self, cell: Cell, row: Mapping[str, Any]) -> None:
        """What a cell measured, or why it failed."""
        self.rows.setdefault(cell.title, []).append({"seed": cell.seed, **row})

    def table(self) -> Table:
        """For the terminal."""
        header, *lines = self.lines()
        table = Table(title=escape(f"{self.network}, {self.images} evaluation images"), caption=escape(self.choice()))
        for place, column in enumerate(header):
            table.add_column(column, justify="right" if place > 1 else "left")
        for line in lines:
            table.add_row(*map(escape, line))
        return table

    def lines(self) -> list[list[str]]:
        """Header and rows as texts; a figure of several seeds is ``mean ± standard deviation``."""
        metrics = [(key, title) for key, title in self.columns if self._has(key)]
        others = [*((key, title) for key, title in COLUMNS if self._has(key)), *_COSTS]
        keys, titles = zip(*metrics, *others, strict=True)
        lines = [["recipe", "bits", *titles, *_AUDIT]]
        empty = [""] * (len(others) + len(_AUDIT))
        lines.append(["float", "w32a32", *(_figure(key, [self.float_row]) for key, _ in metrics), *empty])
        for title, cells in self.rows.items():
            name, bits = title.rsplit(" ", 1)
            good = [cell for cell in cells if "failed" not in cell]
            if not good:
                lines.append([name, bits, f"failed: {cells[0]['failed']}", *[""] * (len(titles) + len(_AUDIT) - 1)])
                continue
            figures = [_figure(key, good) for key in keys]
            audit = good[0]
            kept = str(len(audit["float"]))
            failed = f" ({len(cells) - len(good)} of {len(cells)} seeds failed)" if len(good) < len(cells) else ""
            values = str(audit.get("n_values", {}).get("attn_prob", ""))
            beyond = ", ".join(audit["beyond"]) or "none"
            lines.append([name + failed, bits, *figures, values, beyond, kept, audit["ranges"]])
        return lines

    def chosen(self) -> dict[str, str]:
        """By widths, the recipe with the lowest divergence on held-out images: the mean over its seeds.

        A recipe that failed with a seed, or that ended without numbers, is not chosen.
        """
        best: dict[str, tuple[float, str]] = {}
        for title, cells in self.rows.items():
            name, bits = title.rsplit(" ", 1)
            divergence = statistics.fmean(float(cell.get("held_out_kl", math.nan)) for cell in cells)
            if math.isfinite(divergence) and divergence < best.get(bits, (math.inf, ""))[0]:
                best[bits] = divergence, name
        return {bits: name for bits, (_, name) in best.items()}

    def choice(self) -> str:
        """The recipes that are chosen, in a sentence; nothing where no images are held out."""
        if not self.held_out:
            return ""
        chosen = ", ".join(f"{name} at {bits}" for bits, name in self.chosen().items()) or "none"
        return f"Chosen by the KL on {self.held_out} held-out calibration images: {chosen}."

    def markdown(self) -> str:
        """As a table of Markdown."""
        header, *lines = self.lines()
        rows = [header, ["---", "---", *["---:"] * (len(header) - 2)], *lines]
        escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
        table = "".join(f"| {' | '.join(row)} |\n" for row in escaped)
        return f"{table}\n{self.choice()}\n" if self.held_out else table

    def write(self, directory: Path) -> None:
        """Write ``comparison.md``, ``comparison.csv`` and ``comparison.json``."""
        write_atomically(directory / "comparison.md", self.markdown().encode())
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.lines())
        write_atomically(directory / "comparison.csv", text.getvalue().encode())
        content = {"network": self.network, "images": self.images, "float": self.float_row, "rows": self.rows}
        content |= {"held_out": self.held_out, "chosen": self.chosen()} if self.held_out else {}
        write_json(directory / "comparison.json", content)

    def _has(self, key: str) -> bool:
        return any(key in cell for cells in (*self.rows.values(), [self.float_row]) for cell in cells)


def spread(key: str, cells: Sequence[Mapping[str, Any]]) -> tuple[float, float | None] | None:
    """Mean over the cells that have ``key``, and their standard deviation where there are several; None without any."""
    values = [float(cell[key]) for cell in cells if key in cell]
    if not values:
        return None
    if len(values) == 1:
        return values[0], None
    # The standard library has no deviation of values that are none.
    return statistics.fmean(values), statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def _figure(key: str, cells: Sequence[Mapping[str, Any]]) -> str:
    """Mean over the cells, with the standard deviation where there are several."""
    found = spread(key, cells)
    if found is None:
        return ""
    scale, digits = {"peak_memory_bytes": (1e-9, 2), "float_block_steps": (1.0, 0)}.get(
        key, (1.0, 4 if key.endswith("kl") else 2)
    )
    return " ± ".join(f"{scale * value:.{digits}f}" for value in found if value is not None)
