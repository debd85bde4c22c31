"""Each stage gets a trainer of its own, and what is kept of it lies in the run directory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from isvit_lightning.networks import quantizers
from isvit_lightning.run.fitting import UnitFitter
from isvit_lightning.stages import Fold, FoldStage, Inputs, Schedule, Tune, TuningStage, UnitStage
from isvit_lightning.stages.resume import restore
from isvit_lightning.storage.parts import Parts
from isvit_lightning.system.termination import KeepSigterm
from tests.helpers import image_batch, quiet_trainer, tiny_vit
from tests.stages.fitting import STAGE1, STAGE3, StopAt, StopError, make_stage, work_on

ON_FLOAT = Tune("stage1", weights=False, inputs=Inputs("float"))


class Makes:
    """Builds trainers and notes with which arguments."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def __call__(self, **options: Any) -> Trainer:
        self.options.append(options)
        given = {name: value for name, value in options.items() if name != "callbacks"}
        return quiet_trainer(*options["callbacks"], **given)


def stage_of(choice: Tune = STAGE1, ranges: bool = True) -> TuningStage:
    torch.manual_seed(1)
    return make_stage(choice, tiny_vit(depth=1), image_batch(16, 4), Schedule(2, 2), ranges)


def fold_stage() -> FoldStage:
    return FoldStage(Fold("stage2"), work_on(tiny_vit(depth=1), image_batch(16, 4)))


def same_state(first: UnitStage, second: UnitStage) -> bool:
    one, other = first.network.state_dict(), second.network.state_dict()
    return all(torch.equal(tensor.nan_to_num(), other[name].nan_to_num()) for name, tensor in one.items())


def test_a_stage_is_fitted_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    makes, stage = Makes(), stage_of()
    before = {name: tensor.clone() for name, tensor in stage.network.state_dict().items()}
    UnitFitter(makes, {})(stage)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in stage.network.state_dict().items())
    (options,) = makes.options
    assert (options["max_epochs"], options["enable_checkpointing"], options["logger"]) == (2, False, False)
    assert any(isinstance(callback, KeepSigterm) for callback in options["callbacks"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("choice", "shares"), [(ON_FLOAT, False), (STAGE1, True), (STAGE3, True)])
def test_stages_that_share_units_compute_alone(choice: Tune, shares: bool) -> None:
    makes = Makes()
    stage = stage_of(choice)
    assert stage.shards_images is shares
    UnitFitter(makes, {"devices": 1, "num_nodes": 1, "strategy": "auto"})(stage)
    assert ("num_nodes" in makes.options[0]) is not shares


def test_a_fold_computes_alone() -> None:
    makes, stage = Makes(), fold_stage()
    UnitFitter(makes, {"num_nodes": 1})(stage)
    assert "num_nodes" in makes.options[0]
    assert float(stage.last_loss) < 1e-4


def test_ranges_are_chosen_and_timed() -> None:
    fitter, stage = UnitFitter(Makes(), {}), stage_of(STAGE3, ranges=False)
    assert not any(quantizer.calibrated for quantizer in quantizers(stage.network).values())
    assert fitter.range_seconds == 0
    fitter(stage)
    first = fitter.range_seconds
    assert first > 0
    assert all(quantizer.calibrated for quantizer in quantizers(stage.network).values())
    fitter(stage_of(STAGE3, ranges=False))
    assert fitter.range_seconds > first


def test_logs_and_finished_units_are_kept(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "checkpoints", "run")
    fitter = UnitFitter(Makes(), {}, tmp_path, parts=parts)
    stages: list[UnitStage] = [stage_of(), fold_stage()]
    for stage in stages:
        fitter(stage)
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["stage1", "stage2"]
    for name in ("stage1", "stage2"):
        lines = (tmp_path / "logs" / name / "metrics.csv").read_text().splitlines()
        assert f"{name}/loss_last" in lines[0]
        assert list((tmp_path / "logs" / name).glob("events.*"))
    written = sorted(path.stem for path in parts.directory.iterdir())
    assert written == ["stage1-001", "stage1-002", "stage1-start"]
    assert parts.seconds().keys() == {"stage1"}
    again = stage_of(ranges=False)
    restore(again, parts)
    assert again.plan == []
    assert same_state(again, stages[0])


def test_an_interrupted_stage_goes_on_in_a_folder_of_its_own(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "checkpoints", "run")
    undisturbed = stage_of(STAGE3, ranges=False)
    UnitFitter(Makes(), {})(undisturbed)
    with pytest.raises(StopError):
        UnitFitter(Makes(), {}, tmp_path, [StopAt("stage3", "blocks.0")], parts)(stage_of(STAGE3, ranges=False))
    before = (tmp_path / "logs" / "stage3" / "hparams.yaml").exists()
    stage = stage_of(STAGE3, ranges=False)
    restore(stage, parts)
    assert stage.ranges_chosen
    assert stage.plan == [1, 2]
    UnitFitter(Makes(), {}, tmp_path, parts=parts)(stage)
    assert same_state(stage, undisturbed)
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["stage3", "stage3_from_unit_2"]
    assert (tmp_path / "logs" / "stage3" / "hparams.yaml").exists() == before
    assert "stage3/loss_last" in (tmp_path / "logs" / "stage3_from_unit_2" / "metrics.csv").read_text()


class Counts(Callback):
    """Counts the units that it sees."""

    def __init__(self) -> None:
        self.units: list[str] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.units.append(pl_module.unit.name)


def test_configured_callbacks_see_every_unit() -> None:
    counts = Counts()
    fitter = UnitFitter(Makes(), {}, configured_callbacks=[counts])
    fitter(stage_of())
    assert counts.units == ["blocks.0", "head"]
    fitter(stage_of(STAGE3))
    assert counts.units[2:] == ["patch_embed.proj", "blocks.0", "head"]
