"""The reference numbers: ``docs/reference.yaml`` against the ``results.json`` of runs, and the README's table from it.

::

    python benchmarks/reference.py record RUN "isvit fit --config …"   # write or replace the entry of a run
    python benchmarks/reference.py check RUN …                         # compare runs with their entries; exit 1 beyond
    python benchmarks/reference.py table                               # put the table into the README
"""

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import yaml

REFERENCE = Path(__file__).parent.parent / "docs" / "reference.yaml"
README = REFERENCE.parent.parent / "README.md"
ROWS = ("float", "round_to_nearest", "repq", "stage1", "quantized")
_HEADER = """\
# Reference numbers: what each command printed, and how far another machine may be from it (top-1, per cent points).
# `python benchmarks/reference.py check RUN` compares a run with its entry; the README's table is made from this file.
"""


def read() -> list[dict[str, Any]]:
    """The entries of the reference file."""
    return yaml.safe_load(REFERENCE.read_text()) if REFERENCE.exists() else []


def key(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What identifies an entry: network, bits, iterations and images."""
    images = entry["images"]
    return (
        entry["network"],
        entry["bits"]["weight"],
        entry["bits"]["activation"],
        entry["iterations"],
        images["calibration"],
        images["evaluation"],
    )


def entry_of(run: Path, command: str) -> dict[str, Any]:
    """The reference entry of a finished run."""
    results = json.loads((run / "results.json").read_text())
    entry = {name: results[name] for name in ("network", "bits", "n_codes", "images", "iterations", "seed")}
    entry |= {
        "command": command,
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        "top1": {name: results["metrics"][name]["top1"] for name in ROWS if name in results["metrics"]},
        "tolerance": tolerance(results["images"]["evaluation"]),
        "size_bytes": results["size_bytes"],
        "versions": results["versions"],
    }
    cost = run / "cost.json"
    return entry | ({"cost": json.loads(cost.read_text())} if cost.exists() else {})


def tolerance(images: int) -> float:
    """Three standard deviations of a top-1 near 70 % on as many images: another machine rounds sums differently."""
    return round(300 * (0.7 * 0.3 / images) ** 0.5, 1)


def record(run: Path, command: str) -> None:
    """Write or replace the entry of ``run``."""
    entry = entry_of(run, command)
    kept = [other for other in read() if key(other) != key(entry)]
    text = yaml.safe_dump(sorted([*kept, entry], key=key), sort_keys=False, width=120)
    REFERENCE.write_text(_HEADER + text)


def differences(results: dict[str, Any], entries: list[dict[str, Any]]) -> list[str]:
    """One line for each figure of ``results`` that its entry does not allow."""
    found = [entry for entry in entries if key(entry) == key(results)]
    if not found:
        return [f"no entry for {key(results)}"]
    entry = found[0]
    lines = []
    for name, expected in entry["top1"].items():
        top1 = results["metrics"][name]["top1"]
        allowed = 0.05 if name == "float" else entry["tolerance"]
        if abs(top1 - expected) > allowed:
            lines.append(f"{name}: top-1 {top1}, reference {expected} ± {allowed}")
    return lines


def published(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of the README's table: 100 steps; the ImageNet network leads."""
    chosen = [entry for entry in entries if entry["iterations"] == 100]
    return sorted(chosen, key=lambda entry: ("imagenet" not in entry["network"], *key(entry)))


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown table of all entries."""
    head = "| network | bits W/A | steps | float | round to nearest | RepQ-style | stage 1 | I&S-ViT |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for entry in entries:
        bits = f"{entry['bits']['weight']}/{entry['bits']['activation']}"
        figures = [f"{entry['top1'][name]:.2f}" if name in entry["top1"] else "" for name in ROWS]
        figures[-1] = f"**{figures[-1]}**"
        lines.append(f"| {entry['network']} | {bits} | {entry['iterations']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def write_table() -> None:
    """Put the table of the published entries between the README's markers."""
    before, _, rest = README.read_text().partition("<!-- results -->\n")
    _, _, after = rest.partition("<!-- /results -->")
    README.write_text(f"{before}<!-- results -->\n{table(published(read()))}\n<!-- /results -->{after}")


def run(arguments: list[str]) -> int:
    """Carry out one of the commands of the module's docstring."""
    verb, rest = arguments[0], arguments[1:]
    if verb == "record":
        record(Path(rest[0]), rest[1])
        return 0
    if verb == "table":
        write_table()
        return 0
    failed = False
    for path in map(Path, rest):
        lines = differences(json.loads((path / "results.json").read_text()), read())
        failed |= bool(lines)
        print(f"{path}: {'; '.join(lines) or 'as in the reference'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
