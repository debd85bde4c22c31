"""Cost of a calibration in float block steps, and its peak memory.

A *float block step* is forward, backward and Adam of one float block at the batch size of the calibration: a unit of
cost that carries over from one machine to another. It is measured in the same run, at the start and the end of every
unit, so that whatever else the machine does weighs on both sides.

Arguments are those of ``isvit fit``::

    python benchmarks/calibration.py --config configs/bits/w4a4.yaml --config configs/cifar10/vit_small.yaml
"""

import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from isvit_lightning.cli import IsvitCLI
from isvit_lightning.program import main
from isvit_lightning.run.cost import float_step_seconds
from isvit_lightning.run.runner import Runner
from isvit_lightning.stages import TuningStage, UnitStage
from isvit_lightning.stages.passes import moved


def stage_step_seconds(stage: TuningStage) -> list[float]:
    """Seconds of the float step of the unit that ``stage`` is at, on the first images and as many at once."""
    size, schedule = stage.schedule.batch_size, stage.schedule
    at_once = schedule.micro_batch or (16 if stage.device.type == "cpu" else size)
    unit = stage.target.units[stage.plan[stage.current_epoch]]
    inputs, targets = (moved(rows[:size], stage.device) for rows in (stage.float_inputs, stage.targets))
    return float_step_seconds(unit, inputs, targets, at_once)


class FloatSteps(Callback):
    """Times the float step of each unit while its calibration runs.

    Attributes:
        seconds: timings by stage and unit.
        spent: time that the measurement itself took.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.spent = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time at the start of a unit."""
        cast("UnitStage", pl_module).enter_unit()
        self._time(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time at the end of a unit."""
        self._time(pl_module)

    def _time(self, stage: LightningModule) -> None:
        if not isinstance(stage, TuningStage):
            return
        started = time.perf_counter()
        self.seconds[stage.name, stage.unit.name] += stage_step_seconds(stage)
        self.spent += time.perf_counter() - started

    def step(self, stage: str, unit: str) -> float:
        """Median seconds of the float step of a unit."""
        return statistics.median(self.seconds[stage, unit])


STEPS = FloatSteps()
RUNNERS: list[Runner] = []


class BenchmarkCLI(IsvitCLI):
    """`isvit` with the timing beside it."""

    def _runner(self) -> Runner:
        runner = super()._runner()
        runner.configured_callbacks.append(STEPS)
        RUNNERS.append(runner)
        return runner


def report(directory: Path) -> dict[str, float]:
    """Cost of the finished run."""
    results = json.loads((directory / "results.json").read_text())
    block = statistics.median(STEPS.step(*key) for key in STEPS.seconds if "blocks" in key[1])
    schedule = results["iterations"] * sum(STEPS.step(*key) for key in STEPS.seconds)
    total = results["seconds"]["total"] - STEPS.spent
    return {
        "float_block_step_seconds": round(block, 4),
        "calibration_seconds": round(total, 1),
        "float_block_steps": round(total / block),
        "ratio_to_schedule": round(total / schedule, 3),
        "peak_memory_gb": round(results["peak_memory_bytes"] / 1e9, 3),
        "threads": torch.get_num_threads(),
    }


def run() -> int:
    """Calibrate as ``isvit fit`` does, print cost and memory, and leave them in ``cost.json`` of the run."""
    status = main(["fit", *sys.argv[1:]], BenchmarkCLI)
    if status:
        return status
    directory = RUNNERS[0].directory
    cost = report(directory)
    for name, value in cost.items():
        print(f"{name:28s} {value}")
    (directory / "cost.json").write_text(json.dumps(cost, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run())
