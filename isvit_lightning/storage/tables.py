"""Tables that grow while a run goes on."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Table:
    """A CSV file with a value for every column in each row.

    Args:
        path: the file.
        columns: names of the columns.
    """

    path: Path
    columns: tuple[str, ...]

    def begin(self) -> None:
        """Write the names of the columns over whatever the file holds."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write([self.columns], "w")

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Write some rows behind those that are there; a file that is missing is begun."""
        if not self.path.exists():
            self.begin()
        self._write(rows, "a")

    def _write(self, rows: Iterable[Sequence[Any]], mode: str) -> None:
        with self.path.open(mode, newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
