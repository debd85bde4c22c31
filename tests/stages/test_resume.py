"""A calibration that is stopped in any unit and goes on ends with the same bits, and does nothing twice."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from isvit_lightning.callbacks import CalibrateQuantizers, SaveUnits
from isvit_lightning.recipe import Bits, Choice, Recipe, read_recipe
from isvit_lightning.run.pipeline import Calibration, calibrate_network
from isvit_lightning.stages import Ranges, Schedule, Step, UnitStage
from isvit_lightning.storage.parts import Parts
from tests.helpers import DEFAULT_RECIPE, image_batch, tiny_swin, tiny_vit
from tests.stages.fitting import StopAt, StopError, changed, snapshot, trainer_of

STAGE1, FOLD, STAGE3 = DEFAULT_RECIPE.steps
PER_TENSOR = replace(DEFAULT_RECIPE.placement, qkv_in=Choice(), fc1_in=Choice())
FLOAT = {"inputs": {"read": "float"}}
RECIPES = {
    "recommended": DEFAULT_RECIPE,
    "ranges anew per unit": replace(
        DEFAULT_RECIPE, changes={"stage1": {**FLOAT, "recalibrate": "unit"}, "stage3": {"recalibrate": "unit"}}
    ),
    "ranges anew per stage": replace(
        DEFAULT_RECIPE, placement=read_recipe("repq").placement, changes={"stage3": {"recalibrate": "stage"}}
    ),
    "no stage 1": replace(DEFAULT_RECIPE, steps=[Ranges(), FOLD, STAGE3]),
    "no stage 2": replace(DEFAULT_RECIPE, placement=PER_TENSOR, steps=[STAGE1, STAGE3]),
}


class Count(Callback):
    """Counts how often each unit is begun."""

    def __init__(self) -> None:
        self.begun: Counter[tuple[str, str]] = Counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.begun[pl_module.name, pl_module.unit.name] += 1


def calibrated(
    model: nn.Module, images: torch.Tensor, recipe: Recipe, parts: Parts | None, *callbacks: Callback
) -> dict[str, torch.Tensor]:
    """State of the calibrated network."""
    ranges = CalibrateQuantizers()

    def fit(stage: UnitStage) -> None:
        saving = [] if parts is None else [SaveUnits(parts)]
        trainer = trainer_of(stage, ranges, *callbacks, *saving, enable_checkpointing=bool(saving))
        trainer.fit(stage)

    calibration = Calibration(model, images, Bits(3, 3), recipe, Schedule(2, 4))
    return snapshot(calibrate_network(calibration, fit, None, parts).model)


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_in_each_stage_it_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    names = [step.name for step in recipe.steps]
    # Swin's reductions are folded too, with a norm that lies outside of their unit.
    swin = recipe.placement.reduction_in.granularity == "channel"
    model, images = (tiny_swin(), image_batch(32, 6)) if swin else (tiny_vit(), image_batch(16, 6))
    early, last, late = (
        ("layers.0.blocks.1", "head.fc", "layers.1.blocks.1") if swin else ("blocks.0", "head", "blocks.1")
    )
    expected = calibrated(model, images, recipe, None)
    parts, count = Parts(tmp_path, "run"), Count()
    for step, unit in (
        ("stage1", early),
        ("stage1", last),
        ("stage2", late),
        ("stage3", "patch_embed.proj"),
        ("stage3", late),
    ):
        if step not in names:
            continue
        with pytest.raises(StopError):
            calibrated(model, images, recipe, parts, count, StopAt(step, unit))
    got = calibrated(model, images, recipe, parts, count)
    assert got.keys() == expected.keys()
    assert changed(expected, got) == set()
    twice = {key for key, times in count.begun.items() if times > 1 and key[0] != "stage2"}
    stopped = {("stage1", early), ("stage1", last)} if "stage1" in names else set()
    assert twice == stopped | {("stage3", "patch_embed.proj"), ("stage3", late)}


@pytest.mark.parametrize("name", ["fimaq", "glfq"])
def test_a_loss_that_looks_at_the_network_sees_the_same_after_an_interruption(name: str, tmp_path: Path) -> None:
    model, images, recipe = tiny_vit(), image_batch(16, 6), read_recipe(name)
    expected = calibrated(model, images, recipe, None)
    parts, count, tuned = Parts(tmp_path, "run"), Count(), recipe.steps[-1].name
    for unit in ("blocks.0", "head"):
        with pytest.raises(StopError):
            calibrated(model, images, recipe, parts, count, StopAt(tuned, unit))
    assert changed(expected, calibrated(model, images, recipe, parts, count)) == set()
    assert {key for key, times in count.begun.items() if times > 1} == {(tuned, "blocks.0"), (tuned, "head")}


@pytest.mark.parametrize("lost", ["stage1-001", "stage1-start", "stage2", "stage3-001", "stage3-start"])
def test_a_lost_part_is_done_again(lost: str, tmp_path: Path) -> None:
    model, images, parts = tiny_vit(), image_batch(16, 4), Parts(tmp_path, "run")
    expected = calibrated(model, images, DEFAULT_RECIPE, parts)
    (tmp_path / f"{lost}.safetensors").unlink()
    if lost.startswith("stage1"):
        # Otherwise the network after stage 2 is all that is looked at.
        (tmp_path / "stage2.safetensors").unlink()
    count = Count()
    assert changed(expected, calibrated(model, images, DEFAULT_RECIPE, parts, count)) == set()
    begun = {unit for step, unit in count.begun if step == lost.partition("-")[0]}
    blocks = {"blocks.0", "blocks.1", "head"}
    again = {
        "stage1-001": blocks,
        "stage1-start": blocks,
        "stage2": {"blocks.0", "blocks.1"},
        "stage3-001": blocks,
        "stage3-start": {"patch_embed.proj", *blocks},
    }
    assert begun == again[lost]


def test_a_lost_unit_of_a_stage_on_float_inputs_is_all_that_is_done_again(tmp_path: Path) -> None:
    model, images, parts = tiny_vit(), image_batch(16, 4), Parts(tmp_path, "run")
    recipe = replace(DEFAULT_RECIPE, changes={"stage1": FLOAT})
    expected = calibrated(model, images, recipe, parts)
    for lost in ("stage1-001", "stage2"):
        (tmp_path / f"{lost}.safetensors").unlink()
    count = Count()
    assert changed(expected, calibrated(model, images, recipe, parts, count)) == set()
    assert {unit for step, unit in count.begun if step == "stage1"} == {"blocks.0"}


def test_a_finished_calibration_is_only_read(tmp_path: Path) -> None:
    model, images, parts = tiny_vit(), image_batch(16, 4), Parts(tmp_path, "run")
    expected = calibrated(model, images, DEFAULT_RECIPE, parts)
    count = Count()
    assert changed(expected, calibrated(model, images, DEFAULT_RECIPE, parts, count)) == set()
    assert not count.begun


class SeenBehind:
    """Looks at the network behind one step."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.states: list[dict[str, torch.Tensor]] = []

    def wants(self, step: Step) -> bool:
        return step.name == self.name

    def show(self, step: Step, model: nn.Module) -> None:
        self.states.append(snapshot(model))


def fail(stage: UnitStage) -> None:
    raise AssertionError("nothing is left to do")


def test_the_network_behind_a_finished_step_can_be_had_later(tmp_path: Path) -> None:
    model, images, parts = tiny_vit(), image_batch(16, 4), Parts(tmp_path, "run")
    calibrated(model, images, DEFAULT_RECIPE, parts)
    calibration = Calibration(model, images, Bits(3, 3), DEFAULT_RECIPE, Schedule(2, 4))
    shapes = {}
    for name in ("stage1", "stage2", "stage3"):
        seen = SeenBehind(name)
        calibrate_network(calibration, fail, seen, parts)
        (state,) = seen.states
        shapes[name] = tuple(state["blocks.0.attn.qkv.input_quantizer.scale"].shape)
        # Weights have a grid from the last step on.
        assert bool(state["head.weight_quantizer.scale"].isnan().all()) is (name != "stage3")
    assert shapes == {"stage1": (16,), "stage2": (), "stage3": ()}


def test_what_a_step_without_tuning_did_is_only_read(tmp_path: Path) -> None:
    model, images, parts = tiny_vit(), image_batch(16, 4), Parts(tmp_path, "run")
    recipe = read_recipe("repq")
    expected = calibrated(model, images, recipe, parts)
    assert {path.stem for path in tmp_path.iterdir()} == {"ranges", "fold", "weights"}
    # Other images would give other ranges.
    assert not changed(expected, calibrated(model, 10 * images, recipe, parts))
    (tmp_path / "weights.safetensors").unlink()
    assert not changed(expected, calibrated(model, 10 * images, recipe, parts))
    (tmp_path / "ranges.safetensors").unlink()
    (tmp_path / "fold.safetensors").unlink()
    (tmp_path / "weights.safetensors").unlink()
    assert changed(expected, calibrated(model, 10 * images, recipe, parts))


class OutputsBehind(SeenBehind):
    """Computes with the network behind one step."""

    def __init__(self, name: str, images: torch.Tensor) -> None:
        super().__init__(name)
        self.images = images

    def show(self, step: Step, model: nn.Module) -> None:
        with torch.no_grad():
            self.states.append({"outputs": model(self.images)})


@pytest.mark.parametrize("name", ["ranges", "fold", "weights"])
def test_a_network_that_was_read_computes_what_it_computed(name: str, tmp_path: Path) -> None:
    """Weights are float behind a step that leaves them so, also where its network comes from a file."""
    model, images, parts = tiny_vit(), image_batch(16, 4), Parts(tmp_path, "run")
    calibration = Calibration(model, images, Bits(3, 3), read_recipe("repq"), Schedule(2, 4))
    seen = OutputsBehind(name, images)
    for _ in range(2):
        calibrate_network(calibration, lambda stage: trainer_of(stage).fit(stage), seen, parts)
    made, read = seen.states
    assert not changed(made, read)


def test_ranges_chosen_behind_a_read_step_are_those_of_the_recipe(tmp_path: Path) -> None:
    """A network that was read has its searches from the recipe again."""
    model, images, parts = tiny_vit(), image_batch(16, 4), Parts(tmp_path, "run")
    recipe = RECIPES["ranges anew per stage"]
    expected = calibrated(model, images, recipe, parts)
    for path in tmp_path.glob("stage3-*"):
        path.unlink()
    assert not changed(expected, calibrated(model, images, recipe, parts))
