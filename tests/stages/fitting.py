"""Running stages on small networks, and counting what passes their units."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from isvit_lightning.callbacks import CalibrateQuantizers
from isvit_lightning.networks import OpenedNetwork, calibrate_activations, open_float, open_quantized, switch
from isvit_lightning.recipe.method import Bits, Method, Tuning
from isvit_lightning.run.strategy import UnitStrategy
from isvit_lightning.stages import ActivationStage, Schedule, UnitStage, WeightStage
from isvit_lightning.system.processes import world_size
from tests.helpers import quiet_trainer

DEFAULT_BITS = Bits(3, 3)
TUNED = {"stage 1": ActivationStage, "stage 3": WeightStage}
"""The stages that tune, by title."""


def trainer_of(stage: UnitStage, *callbacks: Callback, **options: Any) -> Trainer:
    """A quiet trainer for ``stage``, on all processes of this group where the stage shares its images among them."""
    if stage.shards_images and world_size() > 1:
        options |= {"devices": world_size(), "strategy": UnitStrategy()}
    return quiet_trainer(*callbacks, **{"max_epochs": stage.epochs, "devices": 1, **options})


def run(
    stage: UnitStage,
    *callbacks: Callback,
    range_images: int = 64,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
) -> UnitStage:
    """``stage`` after its fit on the CPU."""
    trainer_of(stage, CalibrateQuantizers(range_images), *callbacks, precision=precision).fit(stage)
    return stage


def make_stage(
    title: str,
    model: nn.Module,
    images: torch.Tensor,
    schedule: Schedule,
    tuning: Tuning | None = None,
    ranges: bool = True,
    bits: Bits = DEFAULT_BITS,
) -> ActivationStage | WeightStage:
    """A tuning stage on ``model``; its activation ranges are chosen already, unless told otherwise."""
    method = Method()
    if tuning is not None:
        method = replace(method, **{title.replace(" ", ""): tuning})
    quantized = open_quantized(model, bits, method)
    if ranges:
        switch(quantized.model, weights=False, activations=True)
        calibrate_activations(quantized.model, lambda: quantized.walk(images))
    return TUNED[title](quantized, open_float(model), images, schedule, method)


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

    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit = title, unit

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (pl_module.title, pl_module.unit.name) == (self.title, self.unit):
            raise StopError
