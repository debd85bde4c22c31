"""A stage-3 step of a unit against float forward, backward and Adam of the same unit, by kind of unit.

Both are measured by turns while one unit is tuned, so that whatever else the machine does weighs on both sides; then
the same with the unit compiled, where there is a C++ compiler. The last row is a whole calibration against iterations
times the float steps of all units, both stages together.

::

    python benchmarks/steps.py [--record]
"""

import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import speed
import timm
import torch
from calibration import FloatSteps, stage_step_seconds
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from isvit_lightning.callbacks import CalibrateQuantizers
from isvit_lightning.embedded.networks import build_network
from isvit_lightning.networks import open_float
from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.run.pipeline import Calibration, calibrate_network
from isvit_lightning.sources.source import NetworkSource
from isvit_lightning.stages import Fold, Ranges, Schedule, Tune, TuningStage, UnitStage, Work
from isvit_lightning.system.heap import keep_one_heap

DATA = Path(os.environ.get("ISVIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
LIMIT = 1.3

Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True)
class Kind:
    """One kind of unit.

    Args:
        title: what the table calls it.
        build: makes the network.
        size: side of its images.
        unit: path of the unit.
        batch_size: images per step.
    """

    title: str
    build: Callable[[], nn.Module]
    size: int
    unit: str
    batch_size: int = 32


def shared_vit_small() -> nn.Module:
    """The ViT-S of the sample data."""
    name = str(DATA / "vit_small_patch14_98_cifar10")
    return NetworkSource(description=f"{name}.json", checkpoint=f"{name}.safetensors").build().model


def kinds() -> Iterator[Kind]:
    """What there is to measure; the ViT-S only where the sample data is."""
    yield Kind("ViT of the digits, block", lambda: build_network("vit_digits"), 32, "blocks.1")
    yield Kind("Swin of the digits, shifted block", lambda: build_network("swin_digits"), 32, "layers.0.blocks.1")
    yield Kind("Swin of the digits, merging", lambda: build_network("swin_digits"), 32, "layers.1.downsample.reduction")
    if (DATA / "vit_small_patch14_98_cifar10.json").exists():
        yield Kind("ViT-S/14 at 98, block", shared_vit_small, 98, "blocks.1")
    base = {"depth": 2, "num_classes": 10}
    yield Kind("ViT-B/16 at 224, block", lambda: timm.create_model("vit_base_patch16_224", **base), 224, "blocks.0", 16)


class StepTimes(Callback):
    """Seconds of each training step.

    Attributes:
        seconds: one for each step so far.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._started)


class Turns(StepTimes):
    """The same, and now and then the float step between two of them."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.float: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock; every few steps, let the float unit have its turn."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if batch_idx % self.every == 0:
            with torch.enable_grad():
                self.float += stage_step_seconds(cast("TuningStage", pl_module))


def fit(stage: UnitStage, *callbacks: Callback, precision: Precision = "32-true") -> None:
    """Run a stage on the CPU in a precision."""
    Trainer(
        max_epochs=stage.epochs,
        accelerator="cpu",
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks],
    ).fit(stage)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a unit.

    Args:
        first: first step of stage 3, which compiles the unit where that is asked for.
        step: median of the others.
        reference: median float step between them.
    """

    first: float
    step: float
    reference: float

    @property
    def ratio(self) -> float:
        """The step against the float step."""
        return round(self.step / self.reference, 2)


def time_unit(kind: Kind, compiled: bool, iterations: int = 16, every: int = 4) -> Timing:
    """Steps of the unit of ``kind``."""
    torch.manual_seed(0)
    model, recipe = kind.build().eval(), read_recipe("isvit")
    images = torch.randn(2 * kind.batch_size, 3, kind.size, kind.size)
    schedule = Schedule(iterations, kind.batch_size, compile=compiled)
    quantized = recipe.open(model, Bits(4, 4))
    work = Work(quantized, open_float(model), images, schedule, range_images=8, number=len(recipe.steps))
    (tune,) = (step for step in recipe.steps if isinstance(step, Tune) and step.weights)
    for step in (Ranges(), *(step for step in recipe.steps if isinstance(step, Fold))):
        step.take(work, cast("Callable[[Any], None]", fit))
    stage = TuningStage(tune, work)
    stage.plan = [[unit.name for unit in quantized.units].index(kind.unit)]
    turns = Turns(every)
    fit(stage, CalibrateQuantizers(), turns)
    first, *steps = turns.seconds
    return Timing(*(1e3 * seconds for seconds in (first, statistics.median(steps), statistics.median(turns.float))))


def row(kind: Kind, compiler: bool, iterations: int = 16) -> speed.Row:
    """Plain steps of one unit and, where there is a compiler, compiled ones."""
    plain = time_unit(kind, compiled=False, iterations=iterations)
    compiled = time_unit(kind, compiled=True, iterations=iterations) if compiler else None
    return {
        "unit": kind.title,
        "images": kind.batch_size,
        "float step, ms": round(plain.reference, 1),
        "stage-3 step, ms": round(plain.step, 1),
        "ratio": plain.ratio,
        "limit": LIMIT,
        "ratio compiled": compiled.ratio if compiled else "",
        "compiling, s": round(compiled.first / 1e3) if compiled else "",
    }


def time_calibration(iterations: int = 20, images: int = 128) -> speed.Row:
    """The ViT of the digits from beginning to end, against the float steps alone."""
    torch.manual_seed(0)
    steps, batch_size = FloatSteps(), 32
    calibration = Calibration(
        build_network("vit_digits"),
        torch.randn(images, 3, 32, 32),
        Bits(4, 4),
        read_recipe("isvit"),
        Schedule(iterations, batch_size),
    )
    ranges = CalibrateQuantizers()
    started = time.perf_counter()
    calibrate_network(calibration, lambda stage: fit(stage, ranges, steps))
    total = time.perf_counter() - started - steps.spent
    schedule = sum(steps.step(*key) for key in steps.seconds)
    return {
        "unit": f"whole calibration, {iterations} steps a unit",
        "images": batch_size,
        "float step, ms": round(1e3 * schedule, 1),
        "stage-3 step, ms": round(1e3 * total / iterations, 1),
        "ratio": round(total / (iterations * schedule), 2),
        "limit": "",
        "ratio compiled": "",
        "compiling, s": "",
    }


if __name__ == "__main__":
    speed.quiet()
    keep_one_heap()
    has_compiler = shutil.which(os.environ.get("CXX", "g++")) is not None
    speed.finish("steps", [*(row(kind, has_compiler) for kind in kinds()), time_calibration()], sys.argv[1:])
