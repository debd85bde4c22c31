"""Units and images shared among processes: the same network, the same transfers, nothing done twice."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from isvit_lightning.callbacks import CalibrateQuantizers
from isvit_lightning.recipe import Bits, Recipe, read_recipe
from isvit_lightning.run.pipeline import Calibration, calibrate_network
from isvit_lightning.stages import (
    CurvatureError,
    Loss,
    Schedule,
    SquaredGradient,
    UnitStage,
    tuning,
)
from isvit_lightning.storage.parts import Parts
from isvit_lightning.system.hashing import hash_of
from isvit_lightning.system.processes import rank
from tests.helpers import DEFAULT_RECIPE, image_batch, tiny_vit
from tests.several import in_processes
from tests.stages.fitting import trainer_of

FIVE = replace(DEFAULT_RECIPE, range_images=5)
FLOAT = {"inputs": {"read": "float"}}


def with_loss(loss: Loss) -> Recipe:
    """The recommended recipe with another loss of its last step."""
    steps: list[Any] = FIVE.steps
    return replace(FIVE, steps=[*steps[:-1], replace(steps[-1], loss=loss)])


RECIPES = {
    "recommended": FIVE,
    "stage 1 on float inputs": replace(FIVE, changes={"stage1": FLOAT}),
    "ranges anew per unit": replace(
        FIVE, changes={"stage1": {**FLOAT, "recalibrate": "unit"}, "stage3": {"recalibrate": "unit"}}
    ),
    "rounded in turn": replace(FIVE, changes={"stage3": {"trainables": "RoundInTurn"}}),
    "dropping": replace(FIVE, changes={"stage3": {"inputs": {"drop": 0.3}}}),
    "curvature of each image": with_loss(CurvatureError(SquaredGradient())),
    "curvature of some images": with_loss(CurvatureError(images=6)),
    **{name: read_recipe(name) for name in ("aphq", "fimaq", "lsvit", "glfq")},
}


class Units(Callback):
    """Notes which units a process tunes."""

    def __init__(self) -> None:
        self.tuned: list[str] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.tuned.append(f"{pl_module.name} {pl_module.unit.name}")


def shared(name: str, folder: str) -> dict[str, Any]:
    """Calibrate a tiny network, alone or with others, and tell what happened."""
    torch.manual_seed(0)
    model, images, recipe = tiny_vit(), image_batch(16, 7), RECIPES[name]
    ranges, units, sent = CalibrateQuantizers(), Units(), []
    sizes: list[int] = []
    original = tuning.sum_over_processes

    def counted(flat: torch.Tensor) -> None:
        sent.append(flat.numel() * flat.element_size())
        original(flat)

    class Sizes(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            if pl_module.name == "stage3":
                tensors = [t for g in trainer.optimizers[0].param_groups for t in g["params"]]
                sizes.append(sum(t.grad.numel() * t.grad.element_size() for t in tensors))

    def fit(stage: UnitStage) -> None:
        trainer_of(stage, ranges, units, Sizes()).fit(stage)

    tuning.sum_over_processes = counted  # the only transfer of a step
    calibration = Calibration(model, images, Bits(3, 3), recipe, Schedule(4, 4, micro_batch=2))
    try:
        opened = calibrate_network(calibration, fit, None, Parts(folder, "run"))
    finally:
        tuning.sum_over_processes = original
    return {
        "rank": rank(),
        "hash": hash_of(opened.model.state_dict()),
        "units": units.tuned,
        "sent": sent,
        "sizes": sizes,
    }


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_end_with_the_bits_of_one(name: str, tmp_path: Any) -> None:
    alone = shared(name, tmp_path / "one")
    assert alone["sent"] == []
    first, second = in_processes(shared, 2, name, tmp_path / "two")
    assert first["hash"] == second["hash"] == alone["hash"]


def test_units_and_images_are_shared(tmp_path: Any) -> None:
    first, second, third = in_processes(shared, 3, "stage 1 on float inputs", tmp_path)
    assert first["hash"] == second["hash"] == third["hash"]
    stage1 = [[unit for unit in each["units"] if unit.startswith("stage1")] for each in (first, second, third)]
    assert stage1 == [["stage1 blocks.0"], ["stage1 blocks.1"], ["stage1 head"]]
    stage3 = [[unit for unit in each["units"] if unit.startswith("stage3")] for each in (first, second, third)]
    assert stage3[0] == stage3[1] == stage3[2]
    assert len(stage3[0]) == 4
    # One transfer per step: the gradients of the unit, and the loss.
    assert len(first["sent"]) == 4 * 4
    assert first["sent"] == [size + 4 for size in first["sizes"]]
