"""Cost of a calibration in float block steps, and its peak memory.

A *float block step* is forward, backward and Adam of one float block at the batch size of the calibration: a unit of
cost that carries over from one machine to another. It is measured in the same process, before and after.

Arguments are those of ``isvit fit``::

    python benchmarks/calibration.py --config configs/bits/w4a4.yaml --config configs/cifar10/vit_small.yaml
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
import yaml
from torch import nn

from isvit_lightning.cli import default_directory, main
from isvit_lightning.networks import OpenedNetwork, Unit, open_float
from isvit_lightning.networks.source import NetworkSource
from isvit_lightning.stages.tuning import reconstruction_loss

_REPEATS = 7


def read_configs(paths: list[str]) -> dict[str, object]:
    """The merged ``model.network`` section, the batch size and the iterations of configuration files."""
    merged: dict[str, object] = {}
    for path in paths:
        merged |= yaml.safe_load(Path(path).read_text()).get("model", {})
    return merged


def unit_inputs(network: OpenedNetwork, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Input of each unit for ``images (n, 3, height, width)``."""
    inputs, value = {}, images
    with torch.no_grad():
        for unit in network.units:
            inputs[unit.name] = unit.enter(value)
            value = unit.module(inputs[unit.name])
    return inputs


def float_step_seconds(unit: Unit, inputs: torch.Tensor) -> float:
    """Median seconds of forward, backward and Adam of one float unit on ``inputs``."""
    weights = [
        parameter
        for module in unit.module.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for parameter in module.parameters(recurse=False)
    ]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=1e-9, fused=True)
    with torch.no_grad():
        target = unit.module(inputs)
    durations = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        loss = reconstruction_loss(unit.module(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        durations.append(time.perf_counter() - started)
    for weight in weights:
        weight.requires_grad_(False)
        weight.grad = None
    return statistics.median(durations[1:])


def all_steps(network: OpenedNetwork, images: torch.Tensor) -> dict[str, float]:
    """Seconds of the float step of each unit."""
    inputs = unit_inputs(network, images)
    return {unit.name: float_step_seconds(unit, inputs[unit.name]) for unit in network.units}


def run() -> int:
    """Calibrate as ``isvit fit`` does, and print cost and memory."""
    rest = sys.argv[1:]
    paths = [rest[index + 1] for index, word in enumerate(rest[:-1]) if word == "--config"]
    section = read_configs(paths)
    loaded = NetworkSource(**section["network"]).build()  # type: ignore[arg-type]
    network = open_float(loaded.model)
    images = torch.randn(int(section.get("batch_size", 64)), *loaded.preprocessing.input_size)  # type: ignore[call-overload]
    before = all_steps(network, images)
    del network, loaded

    status = main(["fit", *rest])
    if status:
        return status
    given = [rest[index + 1] for index, word in enumerate(rest[:-1]) if word == "--trainer.default_root_dir"]
    directory = Path(given[0]) if given else default_directory(paths)
    results = json.loads((directory / "results.json").read_text())

    network = open_float(NetworkSource(**section["network"]).build().model)  # type: ignore[arg-type]
    after = all_steps(network, images)
    steps = {name: (before[name] + after[name]) / 2 for name in before}
    report(results, steps, directory)
    return 0


def report(results: dict[str, dict[str, float]], steps: dict[str, float], directory: Path) -> None:
    """Print the table and write ``cost.json`` into the run directory."""
    blocks = [seconds for name, seconds in steps.items() if "blocks" in name]
    block = statistics.median(blocks)
    first = next(iter(steps))
    iterations = results["iterations"]
    # The patch projection has nothing to tune in stage 1.
    schedule = iterations * (2 * sum(steps.values()) - steps[first])
    total = results["seconds"]["total"]
    cost = {
        "float_block_step_seconds": round(block, 4),
        "calibration_seconds": total,
        "float_block_steps": round(total / block),
        "ratio_to_schedule": round(total / schedule, 3),
        "peak_memory_gb": round(results["peak_memory_bytes"] / 1e9, 3),
        "threads": torch.get_num_threads(),
    }
    for name, value in cost.items():
        print(f"{name:28s} {value}")
    (directory / "cost.json").write_text(json.dumps(cost, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run())
