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
from isvit_lightning.recipe.method import Bits, Method, Tuning
from isvit_lightning.stages import Calibration, Schedule, UnitStage, calibrate_network
from isvit_lightning.storage.parts import Checkpoints
from tests.helpers import image_batch, tiny_swin, tiny_vit
from tests.stages.fitting import StopAt, StopError, changed, snapshot, trainer_of

TUNED = Tuning(inputs="mixed")
METHODS = {
    "recommended": Method(),
    "ranges anew per unit": Method(
        stage1=replace(Tuning(), recalibrate="unit"), stage3=replace(TUNED, recalibrate="unit")
    ),
    "ranges anew per stage": Method(stage3=replace(TUNED, recalibrate="stage"), reparameterize_reductions=True),
    "no stage 1": Method(stage1=Tuning(enabled=False)),
    "no stage 2": Method(reparameterize=False),
}


class Count(Callback):
    """Counts how often each unit is begun."""

    def __init__(self) -> None:
        self.begun: Counter[tuple[str, str]] = Counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.begun[pl_module.title, pl_module.unit.name] += 1


def calibrated(
    model: nn.Module, images: torch.Tensor, method: Method, checkpoints: Checkpoints | None, *callbacks: Callback
) -> dict[str, torch.Tensor]:
    """State of the calibrated network."""
    ranges = CalibrateQuantizers(method.range_images)

    def fit(stage: UnitStage) -> None:
        saving = [] if checkpoints is None else [SaveUnits(checkpoints)]
        trainer = trainer_of(stage, ranges, *callbacks, *saving, enable_checkpointing=bool(saving))
        trainer.fit(stage)

    calibration = Calibration(model, images, Bits(3, 3), method, Schedule(2, 4))
    return snapshot(calibrate_network(calibration, fit, None, checkpoints).model)


@pytest.mark.parametrize("name", METHODS)
def test_stopped_in_each_stage_it_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    # Swin's reductions are folded too, with a norm that lies outside of their unit.
    swin = method.reparameterize_reductions
    model, images = (tiny_swin(), image_batch(32, 6)) if swin else (tiny_vit(), image_batch(16, 6))
    early, last, late = (
        ("layers.0.blocks.1", "head.fc", "layers.1.blocks.1") if swin else ("blocks.0", "head", "blocks.1")
    )
    expected = calibrated(model, images, method, None)
    checkpoints, count = Checkpoints(tmp_path, "run"), Count()
    for title, unit in (
        ("stage 1", early),
        ("stage 1", last),
        ("stage 2", late),
        ("stage 3", "patch_embed.proj"),
        ("stage 3", late),
    ):
        if (title, method.stage1.enabled) == ("stage 1", False):
            continue
        if (title, method.reparameterize) == ("stage 2", False):
            continue
        with pytest.raises(StopError):
            calibrated(model, images, method, checkpoints, count, StopAt(title, unit))
    got = calibrated(model, images, method, checkpoints, count)
    assert got.keys() == expected.keys()
    assert changed(expected, got) == set()
    twice = {key for key, times in count.begun.items() if times > 1 and key[0] != "stage 2"}
    stopped = {("stage 1", early), ("stage 1", last)} if method.stage1.enabled else set()
    assert twice == stopped | {("stage 3", "patch_embed.proj"), ("stage 3", late)}


@pytest.mark.parametrize("lost", ["stage1-001", "stage1-start", "stage2", "stage3-001", "stage3-start"])
def test_a_lost_part_is_done_again(lost: str, tmp_path: Path) -> None:
    model, images, checkpoints = tiny_vit(), image_batch(16, 4), Checkpoints(tmp_path, "run")
    expected = calibrated(model, images, Method(), checkpoints)
    (tmp_path / f"{lost}.safetensors").unlink()
    if lost.startswith("stage1"):
        # Otherwise the network after stage 2 is all that is looked at.
        (tmp_path / "stage2.safetensors").unlink()
    count = Count()
    assert changed(expected, calibrated(model, images, Method(), checkpoints, count)) == set()
    begun = {unit for title, unit in count.begun if title == f"stage {lost[5]}"}
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
    model, images, checkpoints = tiny_vit(), image_batch(16, 4), Checkpoints(tmp_path, "run")
    method = Method(stage1=Tuning(inputs="float"))
    expected = calibrated(model, images, method, checkpoints)
    for lost in ("stage1-001", "stage2"):
        (tmp_path / f"{lost}.safetensors").unlink()
    count = Count()
    assert changed(expected, calibrated(model, images, method, checkpoints, count)) == set()
    assert {unit for title, unit in count.begun if title == "stage 1"} == {"blocks.0"}


def test_a_finished_calibration_is_only_read(tmp_path: Path) -> None:
    model, images, checkpoints = tiny_vit(), image_batch(16, 4), Checkpoints(tmp_path, "run")
    expected = calibrated(model, images, Method(), checkpoints)
    count = Count()
    assert changed(expected, calibrated(model, images, Method(), checkpoints, count)) == set()
    assert not count.begun


def test_the_network_after_stage_1_can_be_had_later(tmp_path: Path) -> None:
    model, images, checkpoints = tiny_vit(), image_batch(16, 4), Checkpoints(tmp_path, "run")
    calibrated(model, images, Method(), checkpoints)
    seen: list[dict[str, torch.Tensor]] = []

    def fail(stage: UnitStage) -> None:
        raise AssertionError("nothing is left to do")

    calibration = Calibration(model, images, Bits(3, 3), Method(), Schedule(2, 4))
    calibrate_network(calibration, fail, lambda network: seen.append(snapshot(network)), checkpoints)
    assert len(seen) == 1
    # Per channel still, and weights without a grid.
    assert seen[0]["blocks.0.attn.qkv.input_quantizer.scale"].shape == (16,)
    assert bool(seen[0]["head.weight_quantizer.scale"].isnan().all())
