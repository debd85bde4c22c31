"""The reference numbers: ``docs/reference.yaml`` against the ``results.json`` of runs, and the tables made from it.

::

    python benchmarks/reference.py record RUN "isvit fit --config …"   # write or replace the entry of a run
    python benchmarks/reference.py check RUN …                         # compare runs with their entries; exit 1 beyond
    python benchmarks/reference.py table                               # put the tables into their pages
"""

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import speed
import yaml

REFERENCE = Path(__file__).parent.parent / "docs" / "reference.yaml"
PAGES = {"top1": REFERENCE.parent.parent / "README.md", "box_ap": REFERENCE.parent / "detection.md"}
"""Pages with a table, by the metric of its entries."""
COSTS = REFERENCE.parent / "speed.md"
"""The page with the table of costs."""
METRICS = {"top1": "top-1", "box_ap": "box AP", "mask_ap": "mask AP"}
"""Metrics of an entry with their titles; a classifier has the first, a detector the others."""
DISTANCES = ("agreement", "kl")
"""Distances of a classifier's rows to the float network: points, and a divergence."""
KL_TOLERANCE = 0.25
"""How far a divergence may be off, as a share of it: a guess, until two machines were compared."""
AP_TOLERANCE = 1.5
"""Points of box and mask AP on 200 images; seeds of the calibration were seen to differ by up to 1.2."""
ROWS = ("float", "round_to_nearest", "repq", "stage1", "quantized")
_HEADER = """\
# Reference numbers: what each command printed, and how far another machine may be from it (points of top-1 or AP).
# `python benchmarks/reference.py check RUN` compares a run with its entry; tables of the pages are made from this file.
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
    rows = {name: results["metrics"][name] for name in ROWS if name in results["metrics"]}
    known = {**results, "n_codes": results["audit"]["n_codes"]}
    entry = {name: known[name] for name in ("network", "bits", "n_codes", "images", "iterations", "seed")}
    entry |= {
        "command": command,
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        **{metric: {name: row[metric] for name, row in rows.items()} for metric in METRICS if metric in rows["float"]},
        **{
            measure: {name: row[measure] for name, row in rows.items() if measure in row}
            for measure in DISTANCES
            if measure in rows["quantized"]
        },
        "tolerance": tolerance(results["images"]["evaluation"]) if "top1" in rows["float"] else AP_TOLERANCE,
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
    for metric, title in METRICS.items():
        for name, expected in entry.get(metric, {}).items():
            value = results["metrics"][name][metric]
            allowed = 0.05 if name == "float" else entry["tolerance"]
            if abs(value - expected) > allowed:
                lines.append(f"{name}: {title} {value}, reference {expected} ± {allowed}")
    for measure in DISTANCES:
        for name, expected in entry.get(measure, {}).items():
            value = results["metrics"][name][measure]
            allowed = entry["tolerance"] if measure == "agreement" else max(0.01, KL_TOLERANCE * expected)
            if abs(value - expected) > allowed:
                lines.append(f"{name}: {measure} {value}, reference {expected} ± {allowed:.3g}")
    return lines


def published(entries: list[dict[str, Any]], metric: str = "top1") -> list[dict[str, Any]]:
    """The entries of a page's table: 100 steps, those that have ``metric``; the ImageNet network leads."""
    chosen = [entry for entry in entries if entry["iterations"] == 100 and metric in entry]
    return sorted(chosen, key=lambda entry: ("imagenet" not in entry["network"], *key(entry)))


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown table of all entries; box and mask AP share a cell."""
    head = "| network | bits W/A | steps | float | round to nearest | RepQ-style | stage 1 (float weights) | I&S-ViT |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for entry in entries:
        bits = f"{entry['bits']['weight']}/{entry['bits']['activation']}"
        figures = [figure(entry, name) for name in ROWS]
        figures[-1] = f"**{figures[-1]}**"
        lines.append(f"| {entry['network']} | {bits} | {entry['iterations']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def figure(entry: dict[str, Any], row: str) -> str:
    """The metrics of a row of an entry; empty where it was not measured."""
    values = [entry[metric].get(row) for metric in METRICS if metric in entry]
    return " / ".join(f"{value:.2f}" for value in values if value is not None)


def cost_table(entries: list[dict[str, Any]]) -> str:
    """Markdown table of what the calibrations cost whose cost was measured."""
    rows: list[speed.Row] = [
        {
            "network": entry["network"],
            "bits W/A": f"{entry['bits']['weight']}/{entry['bits']['activation']}",
            "steps": entry["iterations"],
            "float block step, ms": round(1e3 * entry["cost"]["float_block_step_seconds"]),
            "float block steps": entry["cost"]["float_block_steps"],
            "ratio": entry["cost"]["ratio_to_schedule"],
            "peak memory, GB": entry["cost"]["peak_memory_gb"],
            "date": entry["date"],
        }
        for entry in entries
        if "cost" in entry
    ]
    return speed.table(rows)


def between(page: Path, marker: str) -> str:
    """What stands between the markers of a page."""
    return page.read_text(encoding="utf-8").partition(f"<!-- {marker} -->")[2].partition(f"<!-- /{marker} -->")[0]


def write_tables() -> None:
    """Put the tables between the markers of their pages."""
    entries = read()
    tables = [(page, "results", table(published(entries, metric))) for metric, page in PAGES.items()]
    for page, marker, text in (*tables, (COSTS, "cost", cost_table(entries))):
        old = f"<!-- {marker} -->{between(page, marker)}<!-- /{marker} -->"
        new = f"<!-- {marker} -->\n{text}\n<!-- /{marker} -->"
        page.write_text(page.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def run(arguments: list[str]) -> int:
    """Carry out one of the commands of the module's docstring."""
    verb, rest = arguments[0], arguments[1:]
    if verb == "record":
        record(Path(rest[0]), rest[1])
        return 0
    if verb == "table":
        write_tables()
        return 0
    failed = False
    for path in map(Path, rest):
        lines = differences(json.loads((path / "results.json").read_text()), read())
        failed |= bool(lines)
        print(f"{path}: {'; '.join(lines) or 'as in the reference'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
