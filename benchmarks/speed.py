"""The tables of ``docs/speed.md``, ``deployment.md`` and the README: what each benchmark measured last.

Every benchmark prints its table; with ``--record`` it also replaces its entry and its table. By itself::

    python benchmarks/speed.py       # put all recorded tables into the page again
"""

import datetime as dt
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

RECORD = Path(__file__).parent.parent / "docs" / "speed.yaml"
PAGE = RECORD.with_suffix(".md")
_HEADER = "# What benchmarks/ measured; `python benchmarks/NAME.py --record` replaces an entry and its table.\n"

Row = Mapping[str, str | float]


def quiet() -> None:
    """Leave only the tables on the screen."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def read() -> dict[str, Any]:
    """Entries by name of the benchmark."""
    return (yaml.safe_load(RECORD.read_text(encoding="utf-8")) or {}) if RECORD.exists() else {}


def table(rows: Sequence[Row]) -> str:
    """Markdown table of rows with the same keys."""
    lines = [f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0])]
    lines += [f"| {' | '.join(_cell(value) for value in row.values())} |" for row in rows]
    return "\n".join(lines)


def finish(name: str, rows: Sequence[Row], arguments: Sequence[str]) -> None:
    """Print the table of a benchmark, and record it if ``arguments`` ask for it."""
    print(table(rows))
    if "--record" in arguments:
        record(name, rows)
        write_page()


def record(name: str, rows: Sequence[Row]) -> None:
    """Replace the entry of a benchmark."""
    entries = read()
    entries[name] = {
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": str(torch.__version__),
        "rows": [dict(row) for row in rows],
    }
    text = yaml.safe_dump(dict(sorted(entries.items())), sort_keys=False, allow_unicode=True, width=120)
    RECORD.write_text(_HEADER + text, encoding="utf-8")


def pages() -> list[Path]:
    """The pages with tables."""
    others = (PAGE.with_name("deployment.md"), PAGE.parent.parent / "README.md")
    return [PAGE, *(path for path in others if path.exists())]


def write_page() -> None:
    """Put every recorded table between its markers on the pages."""
    for page in pages():
        _fill(page)


def _fill(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name, entry in read().items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = text.partition(start)
        if found:
            where = (
                f"{entry['date']}, torch {entry['torch']}, {entry['threads']} of {entry['cores']} cores, "
                f"load {entry['load']}"
            )
            text = f"{before}{start}{table(entry['rows'])}\n\n({where})\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")


def _cell(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    write_page()
    sys.exit()
