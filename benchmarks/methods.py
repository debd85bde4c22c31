"""The table of ``docs/methods.md``: what ``isvit compare`` measured last, kept in ``docs/methods.yaml``.

The argument is the directory of a finished comparison, and its command::

    python benchmarks/methods.py RUN "isvit compare --config …"
    python benchmarks/methods.py       # put the recorded table into the page again
"""

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from isvit_lightning.run.comparison import Comparison
from isvit_lightning.run.results import versions

RECORD = Path(__file__).parent.parent / "docs" / "methods.yaml"
PAGE = RECORD.with_suffix(".md")
COLUMNS = (("top1", "top-1 %"), ("agreement", "agreement %"), ("kl", "KL"))
"""Metrics of the page: top-5 says nothing of ten classes."""
TOLERANCE = {"top1": 3.0, "agreement": 3.0, "kl": 0.25}
"""How far another machine may be: points, and a share of the divergence; see docs/methods.md."""
_HEADER = "# What isvit compare measured; `python benchmarks/methods.py RUN COMMAND` replaces it and its table.\n"


def entry_of(run: Path, command: str) -> dict[str, Any]:
    """What is kept of a finished comparison."""
    content = json.loads((run / "comparison.json").read_text())
    return {
        "command": command,
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        "tolerance": TOLERANCE,
        "versions": versions(),
        **content,
    }


def table(entry: dict[str, Any]) -> str:
    """The table of the page."""
    rows, held_out = entry["rows"], entry.get("held_out", 0)
    return Comparison(entry["network"], COLUMNS, entry["images"], rows, entry["float"], held_out).markdown()


def write_page() -> None:
    """Put the recorded table between its markers."""
    entry = yaml.safe_load(RECORD.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- comparison -->\n")
    _, _, after = rest.partition("<!-- /comparison -->")
    block = (
        f"```bash\n{entry['command']}\n```\n\n{table(entry)}\n({entry['date']}, torch {entry['versions']['torch']})\n"
    )
    PAGE.write_text(f"{before}<!-- comparison -->\n{block}<!-- /comparison -->{after}", encoding="utf-8")


def run() -> int:
    """Record what is given, and write the page."""
    if len(sys.argv) == 3:
        entry = entry_of(Path(sys.argv[1]), sys.argv[2])
        RECORD.write_text(_HEADER + yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, width=120))
    write_page()
    return 0


if __name__ == "__main__":
    sys.exit(run())
