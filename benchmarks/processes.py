"""How much faster two processes are than one, a thread each.

Runs ``isvit fit`` with one and with two processes in turn, so that whatever else the machine does weighs on both, and
compares the seconds of stage 1 and stage 3 of each pair. It needs two idle cores. It also compares the results: the
share of weights with the same code, and the bytes of the file. Arguments are those of ``isvit fit``; without any, short
runs on the digits and of the ViT-S::

    python benchmarks/processes.py --pairs 3 --config configs/bits/w4a4.yaml --config configs/cifar10/vit_small.yaml
    python benchmarks/processes.py --record

Where stage 1 reads float inputs the processes share its units instead of the images.
"""

import argparse
import json
import operator
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import speed
import torch

from isvit_lightning.export.artifact import load
from isvit_lightning.networks import quantizers

CONFIGS = Path(__file__).parent.parent / "configs"
DIGITS = ("--config", str(CONFIGS / "quickstart.yaml"), "--model.iterations", "50")
VIT_S = (
    *("--config", str(CONFIGS / "bits" / "w4a4.yaml"), "--config", str(CONFIGS / "cifar10" / "vit_small.yaml")),
    *("--model.iterations", "8", "--data.calibration_images", "128"),
)
FLOAT_INPUTS = ("--model.recipe.changes", "{stage1: {inputs: {read: float}}}")
RUNS = {
    "ViT of the digits": DIGITS,
    "the same, stage 1 on float inputs": (*DIGITS, *FLOAT_INPUTS),
    "ViT-S": VIT_S,
    "the same ViT-S, stage 1 on float inputs": (*VIT_S, *FLOAT_INPUTS),
}
STAGES = ("stage1", "stage3")
SHARED_UNITS, SHARED_IMAGES = 1.8, 1.6
"""Smallest ratio that is expected of a stage whose processes share its units, or the images of each step."""


def fit(arguments: Sequence[str], processes: int, directory: Path) -> dict[str, float]:
    """Seconds of each stage of a run.

    Args:
        arguments: of ``isvit fit``.
        processes: number of processes, each with one thread.
        directory: run directory.
    """
    several = ["--trainer.accelerator", "cpu", "--trainer.devices", str(processes)]
    quiet = ["--evaluate", "false", "--trainer.default_root_dir", str(directory)]
    command = [sys.executable, "-m", "isvit_lightning", "fit", *arguments, *several, *quiet]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stderr=subprocess.DEVNULL)
    seconds: dict[str, float] = json.loads((directory / "results.json").read_text())["seconds"]
    return seconds


def wanted(directory: Path) -> dict[str, float]:
    """Smallest ratio that is expected of each stage of a run."""
    recipe = json.loads((directory / "calibration.json").read_text())["run"]["model"]["recipe"]
    reads = {step["name"]: step["inputs"]["read"] for step in recipe["steps"] if step["name"] in STAGES}
    return {stage: SHARED_UNITS if (stage, reads[stage]) == ("stage1", "float") else SHARED_IMAGES for stage in STAGES}


def weight_codes(directory: Path) -> torch.Tensor:
    """Codes of all weights of a run, one vector."""
    model = load(directory).model
    return torch.cat(
        [
            quantizer.encode(model.get_parameter(f"{name.rpartition('.')[0]}.weight")).flatten()
            for name, quantizer in quantizers(model).items()
            if quantizer.role.weight
        ]
    )


def measure(name: str, arguments: Sequence[str], pairs: int) -> list[speed.Row]:
    """One row for each stage of a run.

    Args:
        name: what the table calls the run.
        arguments: of ``isvit fit``.
        pairs: how many times one process and two are measured by turns.
    """
    alone: dict[str, list[float]] = {stage: [] for stage in STAGES}
    shared: dict[str, list[float]] = {stage: [] for stage in STAGES}
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "one", Path(folder) / "two"
        for _ in range(pairs):
            for found, processes, directory in ((alone, 1, one), (shared, 2, two)):
                seconds = fit(arguments, processes, directory)
                for stage in STAGES:
                    found[stage].append(seconds[stage])
        same = 100 * float((weight_codes(one) == weight_codes(two)).double().mean())
        equal = (one / "quantized.safetensors").read_bytes() == (two / "quantized.safetensors").read_bytes()
        limits = wanted(one)
    return [
        {
            "run": name,
            "stage": stage.removeprefix("stage"),
            "shared": "units" if limits[stage] == SHARED_UNITS else "images",
            "1 process, s": round(statistics.median(alone[stage]), 1),
            "2 processes, s": round(statistics.median(shared[stage]), 1),
            "ratio": round(statistics.median(map(operator.truediv, alone[stage], shared[stage])), 2),
            "wanted": limits[stage],
            "same codes, %": round(same, 2),
            "files": "equal" if equal else "different",
        }
        for stage in STAGES
    ]


def run() -> int:
    """Measure, print, and tell whether every stage is as fast as wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options, arguments = parser.parse_known_args()
    if arguments and options.record:
        parser.error("--record goes without arguments of isvit fit: the page holds the short runs")
    runs = {"given": arguments} if arguments else RUNS
    rows = [row for name, given in runs.items() for row in measure(name, given, options.pairs)]
    speed.finish("processes", rows, sys.argv)
    fast = all(float(row["ratio"]) >= float(row["wanted"]) for row in rows)
    return 0 if fast and all(float(row["same codes, %"]) >= 99 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(run())
