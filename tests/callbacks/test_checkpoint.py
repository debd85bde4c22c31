"""What is kept of a step that tunes: its ranges before the first unit, and each unit as it is final."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from isvit_lightning.callbacks import CalibrateQuantizers, SaveUnits
from isvit_lightning.networks import quantizers
from isvit_lightning.stages import Fold, FoldStage, Inputs, Schedule, Tune, TuningStage, UnitStage
from isvit_lightning.storage.parts import Parts
from tests.helpers import image_batch, tiny_vit
from tests.stages.fitting import (
    STAGE1,
    STAGE3,
    EachStep,
    StopAt,
    StopError,
    changed,
    make_stage,
    run,
    snapshot,
    trainer_of,
    work_on,
)

CHOICE = pytest.mark.parametrize("choice", [STAGE1, STAGE3], ids=["stage1", "stage3"])


def kept(stage: UnitStage, parts: Parts, *callbacks: Callback) -> UnitStage:
    trainer_of(stage, CalibrateQuantizers(), *callbacks, SaveUnits(parts), enable_checkpointing=True).fit(stage)
    return stage


@CHOICE
def test_there_is_a_part_for_the_start_and_for_each_unit(choice: Tune, tmp_path: Path) -> None:
    parts = Parts(tmp_path, "run")
    stage = kept(make_stage(choice, tiny_vit(), image_batch(16, 4), Schedule(1, 4)), parts)
    names = [f"{choice.name}-start", *(f"{choice.name}-{index:03d}" for index in stage.plan)]
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == sorted(names)
    for index in stage.plan:
        part = parts.read(f"{choice.name}-{index:03d}")
        assert part is not None
        state = stage.quantized.units[index].module.state_dict()
        assert part.tensors.keys() == state.keys()
        assert not changed(part.tensors, state)
    assert parts.rolled_back() == {}
    assert parts.seconds()[choice.name] > 0


def test_the_start_holds_the_grids_before_the_first_step(tmp_path: Path) -> None:
    parts, stage = Parts(tmp_path, "run"), make_stage(STAGE3, tiny_vit(), image_batch(16, 4), Schedule(2, 4))
    seen: list[dict[str, torch.Tensor]] = []
    kept(stage, parts, EachStep(lambda stage, _: seen.append(snapshot(stage.network))))
    start = parts.read("stage3-start")
    assert start is not None
    assert start.tensors.keys() == {
        f"{path}.{name}" for path, quantizer in quantizers(stage.network).items() for name in quantizer.format.numbers
    }
    assert not changed(start.tensors, seen[0])
    # Scales are tuned from then on.
    assert changed(start.tensors, snapshot(stage.network))


def test_an_interrupted_step_has_its_finished_units_alone(tmp_path: Path) -> None:
    parts, stage = Parts(tmp_path, "run"), make_stage(STAGE3, tiny_vit(), image_batch(16, 4), Schedule(1, 4))
    with pytest.raises(StopError):
        kept(stage, parts, StopAt("stage3", "blocks.1"))
    assert {path.stem for path in tmp_path.iterdir()} == {"stage3-start", "stage3-000", "stage3-001"}


def test_ranges_that_were_read_are_not_kept_again(tmp_path: Path) -> None:
    stage = run(make_stage(STAGE3, tiny_vit(), image_batch(16, 4), Schedule(1, 4)))
    again = TuningStage(STAGE3, replace(work_on(tiny_vit(), stage.images), quantized=stage.quantized))
    again.ranges_chosen = True
    again.plan = [2]
    kept(again, Parts(tmp_path, "run"))
    assert {path.stem for path in tmp_path.iterdir()} == {"stage3-002"}


def test_a_unit_that_was_rolled_back_is_told_of(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "run")
    choice = replace(STAGE3, inputs=Inputs("quantized"))
    stage = make_stage(choice, tiny_vit(), image_batch(16, 4), Schedule(2, 4))

    def spoil(stage: UnitStage, step: int) -> None:
        if stage.unit.name == "blocks.1" and step == 1:
            stage.unit.module.mlp.fc1.weight.data.fill_(torch.nan)

    kept(stage, parts, EachStep(spoil))
    assert parts.rolled_back() == {"stage3": ["blocks.1"]}
    part = parts.read("stage3-002")
    assert part is not None
    assert all(bool(tensor.isfinite().all()) for tensor in part.tensors.values())


def test_what_other_callbacks_do_to_a_finished_unit_is_kept_too(tmp_path: Path) -> None:
    class Mark(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            for parameter in pl_module.unit.module.parameters():
                parameter.data.fill_(7)

    parts = Parts(tmp_path, "run")
    kept(make_stage(STAGE1, tiny_vit(), image_batch(16, 4), Schedule(1, 4)), parts, Mark())
    part = parts.read("stage1-003")
    assert part is not None
    assert part.tensors["weight"].unique().tolist() == [7]


def test_nothing_is_kept_of_a_step_that_tunes_nothing(tmp_path: Path) -> None:
    kept(FoldStage(Fold(), work_on(tiny_vit(), image_batch(16, 4))), Parts(tmp_path, "run"))
    assert list(tmp_path.iterdir()) == []
