"""How much faster two processes are than one, a thread each.

Runs ``isvit fit`` with one and with two processes in turn, so that whatever else the machine does weighs on both, and
prints the ratio of the seconds of stage 1 and stage 3 of each pair. It needs two idle cores. It also compares the
results: the share of weights with the same code, and the bytes of the file. Arguments are those of ``isvit fit``::

    python benchmarks/processes.py --pairs 3 --config configs/bits/w4a4.yaml --config configs/cifar10/vit_small.yaml

With ``--model.method.stage1.inputs float`` the processes share the units of stage 1 instead of the images.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from isvit_lightning.artifact import load
from isvit_lightning.networks import quantizers
from isvit_lightning.quantizers import Role

STAGES = ("stage1", "stage3")
SHARED_UNITS, SHARED_IMAGES = 1.8, 1.6
"""Smallest ratio that is expected of a stage whose processes share its units, or the images of each step."""


def fit(arguments: list[str], processes: int, directory: Path) -> dict[str, float]:
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
    method = yaml.safe_load((directory / "config.yaml").read_text())["model"]["method"]
    return {
        stage: SHARED_UNITS if (stage, method[stage]["inputs"]) == ("stage1", "float") else SHARED_IMAGES
        for stage in STAGES
    }


def weight_codes(directory: Path) -> torch.Tensor:
    """Codes of all weights of a run, one vector."""
    model = load(directory).model
    return torch.cat(
        [
            quantizer.encode(model.get_parameter(f"{name.rpartition('.')[0]}.weight")).flatten()
            for name, quantizer in quantizers(model).items()
            if quantizer.role is Role.WEIGHT
        ]
    )


def run() -> int:
    """Measure, print, and tell whether every stage is as fast as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    options, arguments = parser.parse_known_args()
    ratios: dict[str, list[float]] = {stage: [] for stage in STAGES}
    print(f"{'pair':>4s} {'stage':8s} {'1 process':>10s} {'2 processes':>12s} {'ratio':>6s}")
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "one", Path(folder) / "two"
        for pair in range(options.pairs):
            alone, shared = fit(arguments, 1, one), fit(arguments, 2, two)
            for stage, found in ratios.items():
                found.append(alone[stage] / shared[stage])
                print(f"{pair + 1:4d} {stage:8s} {alone[stage]:8.1f} s {shared[stage]:10.1f} s {found[-1]:6.2f}")
        same = float((weight_codes(one) == weight_codes(two)).double().mean())
        expected = wanted(one)
        equal = (one / "quantized.safetensors").read_bytes() == (two / "quantized.safetensors").read_bytes()
    medians = {stage: statistics.median(found) for stage, found in ratios.items()}
    for stage, ratio in expected.items():
        print(f"{stage}: {medians[stage]:.2f} times as fast, expected {ratio}")
    print(f"same codes: {100 * same:.3f} % of the weights; files {'equal' if equal else 'different'} byte for byte")
    return 0 if all(medians[stage] >= ratio for stage, ratio in expected.items()) and same >= 0.99 else 1


if __name__ == "__main__":
    sys.exit(run())
