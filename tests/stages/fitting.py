"""Running stages on small networks, and counting what passes their units."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from isvit_lightning.callbacks import CalibrateQuantizers
from isvit_lightning.networks import OpenedNetwork, calibrate_activations, open_float, switch
from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.run.strategy import UnitStrategy
from isvit_lightning.stages import Inputs, Schedule, Tune, TuningStage, UnitStage, Work
from isvit_lightning.system.processes import world_size
from tests.helpers import quiet_trainer

DEFAULT_BITS = Bits(3, 3)
STAGE1 = Tune("stage1", weights=False, inputs=Inputs("quantized"))
"""Tunes with float weights, as the first step of I&S-ViT."""
STAGE3 = Tune("stage3", inputs=Inputs("mixed"))
"""Tunes with quantized weights, as its last step."""
NUMBERS = {"stage1": 1, "stage2": 2, "stage3": 3}
"""Place of each step in the recipe of I&S-ViT."""


def trainer_of(stage: UnitStage, *callbacks: Callback, **options: Any) -> Trainer:
    """A quiet trainer for ``stage``, on all processes of this group where the stage shares its images among them."""
    if stage.shards_images and world_size() > 1:
        options |= {"devices": world_size(), "strategy": UnitStrategy()}
    return quiet_trainer(*callbacks, **{"max_epochs": stage.epochs, "devices": 1, **options})


def run(stage: UnitStage, *callbacks: Callback, precision: Literal["32-true", "bf16-mixed"] = "32-true") -> UnitStage:
    """``stage`` after its fit on the CPU."""
    trainer_of(stage, CalibrateQuantizers(), *callbacks, precision=precision).fit(stage)
    return stage


def work_on(
    model: nn.Module,
    images: torch.Tensor,
    schedule: Schedule | None = None,
    bits: Bits = DEFAULT_BITS,
    ranges: bool = True,
    number: int = 1,
    range_images: int = 64,
) -> Work:
    """``model`` opened by the recipe of I&S-ViT; its activation ranges are chosen already, unless told otherwise."""
    quantized = read_recipe("isvit").open(model, bits)
    if ranges:
        switch(quantized.model, weights=False, activations=True)
        calibrate_activations(quantized.model, lambda: quantized.walk(images))
    return Work(quantized, open_float(model), images, schedule or Schedule(2, 4), 0, range_images, number)


def make_stage(
    choice: Tune,
    model: nn.Module,
    images: torch.Tensor,
    schedule: Schedule,
    ranges: bool = True,
    bits: Bits = DEFAULT_BITS,
) -> TuningStage:
    """A tuning stage on ``model``; its activation ranges are chosen already, unless told otherwise."""
    return TuningStage(choice, work_on(model, images, schedule, bits, ranges, NUMBERS[choice.name]))


class EachStep(Callback):
    """Calls ``look(stage, step)`` before each step or after it."""

    def __init__(self, look: Any, after: bool = False) -> None:
        self.look = look
        self.after = after

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.after:
            self.look(pl_module, batch_idx)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.after:
            self.look(pl_module, batch_idx)


@contextmanager
def counted(network: OpenedNetwork) -> Iterator[Counter[str]]:
    """Images that pass each unit outside of training steps, by name of the unit."""
    passed: Counter[str] = Counter({unit.name: 0 for unit in network.units})

    def count(name: str, inputs: torch.Tensor) -> None:
        if not torch.is_grad_enabled():
            passed[name] += len(inputs)

    handles = [
        unit.module.register_forward_hook(lambda module, args, output, name=unit.name: count(name, args[0]))
        for unit in network.units
    ]
    yield passed
    for handle in handles:
        handle.remove()


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state of ``model``."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that are not bit for bit the same; NaN equals NaN."""
    return {name for name in before if not torch.equal(before[name].nan_to_num(), after[name].nan_to_num())}


class StopError(Exception):
    """Stands for a kill."""


class StopAt(Callback):
    """Stops the program in the middle of a unit."""

    def __init__(self, step: str, unit: str) -> None:
        self.step, self.unit = step, unit

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (pl_module.name, pl_module.unit.name) == (self.step, self.unit):
            raise StopError
