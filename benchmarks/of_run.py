"""What `isvit benchmark RUN` measured of a run, as tables of the pages.

    isvit benchmark runs/quickstart --threads 1 --batches 8
    python benchmarks/of_run.py quickstart=runs/quickstart --record

records the tables ``quickstart_speed`` and ``quickstart_accuracy``.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import speed

_SPEED = {"milliseconds": "ms", "images_per_second": "images/s", "ratio": "to float"}
_ACCURACY = {"top1": "top-1 %", "agreement": "agreement %", "kl": "KL", "same": "same class %"}


def speed_rows(content: dict[str, Any]) -> list[speed.Row]:
    """Rows of what was timed.

    Args:
        content: of a ``benchmark.json``.
    """
    return [
        {"engine": row["engine"], "form": row["form"], "threads": row["threads"], "images": row["batch"]}
        | {title: _figure(row[key]) for key, title in _SPEED.items()}
        for row in content["speed"]
    ]


def accuracy_rows(content: dict[str, Any]) -> list[speed.Row]:
    """Rows of sizes and of what was measured on images.

    Args:
        content: of a ``benchmark.json``.
    """
    sizes = {(form["engine"], form["name"]): form.get("file_bytes") for form in content["forms"]}
    return [
        {"engine": row["engine"], "form": row["form"], "file, MB": _figure(sizes[row["engine"], row["form"]], 1e-6)}
        | {title: _figure(row["metrics"].get(key)) for key, title in _ACCURACY.items()}
        for row in content["parity"]
    ]


def _figure(value: float | None, factor: float = 1.0) -> float | str:
    return "" if value is None else round(factor * value, 4) + 0.0


def main(arguments: Sequence[str]) -> None:
    """Print the tables of runs, and record them where that is asked for."""
    for argument in arguments:
        name, given, run = argument.partition("=")
        if given:
            content = json.loads((Path(run) / "benchmark.json").read_text(encoding="utf-8"))
            speed.finish(f"{name}_speed", speed_rows(content), arguments)
            if content["parity"]:
                speed.finish(f"{name}_accuracy", accuracy_rows(content), arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
