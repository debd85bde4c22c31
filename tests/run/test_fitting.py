"""Each stage gets a trainer of its own, and what is kept of it lies in the run directory."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers.logger import DummyLogger

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import calibrate_weights, quantizers, switch
from isvit_lightning.run.fitting import UnitFitter
from isvit_lightning.stages import Fold, FoldStage, Inputs, Schedule, Tune, TuningStage, UnitStage
from isvit_lightning.stages.finetune import Finetune, FinetuneStage
from isvit_lightning.stages.resume import restore
from isvit_lightning.storage.parts import Parts
from isvit_lightning.system.termination import KeepSigterm
from tests.helpers import image_batch, quiet_trainer, tiny_vit
from tests.stages.fitting import STAGE1, STAGE3, EachStep, StopAt, StopError, make_stage, work_on

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


def losses_in(directory: Path) -> list[tuple[str, str, int, float]]:
    """Rows of the table of losses of a run directory."""
    with (directory / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [(row["step"], row["unit"], int(row["iteration"]), float(row["loss"])) for row in rows]


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
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "metrics.csv",
        "quantizers.csv",
        "stage1",
        "stage2",
    ]
    for name in ("stage1", "stage2"):
        assert list((tmp_path / "logs" / name).glob("events.*"))
    rows = losses_in(tmp_path)
    places = [("stage1", unit, number) for unit in ("blocks.0", "head") for number in (1, 2)]
    assert [row[:3] for row in rows] == [*places, ("stage2", "blocks.0", 1)]
    assert rows[3][3] == float(stages[0].last_loss)
    assert rows[4][3] == float(stages[1].last_loss)
    grids = (tmp_path / "logs" / "quantizers.csv").read_text().splitlines()
    assert grids[0] == "step,unit,quantizer,low,high,used_codes,n_codes,clipped,snr_db"
    assert {line.split(",")[0] for line in grids[1:]} == {"stage1", "stage2"}
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
    folders = [path.name for path in (tmp_path / "logs").iterdir() if path.is_dir()]
    assert sorted(folders) == ["stage3", "stage3_from_unit_2"]
    assert (tmp_path / "logs" / "stage3" / "hparams.yaml").exists() == before
    units = [unit for _, unit, number, _ in losses_in(tmp_path) if number == 1]
    assert units == ["patch_embed.proj", "blocks.0", "head"]


def test_losses_between_the_first_and_the_last_are_every_few_iterations(tmp_path: Path) -> None:
    torch.manual_seed(1)
    stage = make_stage(STAGE1, tiny_vit(depth=1), image_batch(16, 4), Schedule(5, 2))
    found: list[float] = []
    every = EachStep(lambda stage, _: found.append(float(stage.last_loss)), after=True)
    fitter = UnitFitter(partial(Makes(), log_every_n_steps=2), {}, tmp_path, [every])
    fitter(stage)
    assert [row[2:] for row in losses_in(tmp_path)] == [
        (number, found[5 * unit + number - 1]) for unit in (0, 1) for number in (1, 2, 4, 5)
    ]


class Remembers(DummyLogger):
    """A logger of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:  # type: ignore[override]
        self.seen.append((step, dict(metrics)))


def test_the_losses_go_to_the_loggers_of_the_user_instead_of_tensorboard(tmp_path: Path) -> None:
    logger, stage = Remembers(), stage_of()
    UnitFitter(Makes(), {}, tmp_path, loggers=[logger])(stage)
    rows = losses_in(tmp_path)
    assert logger.seen == [(step, {"stage1/loss": row[3]}) for step, row in enumerate(rows, 1)]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["metrics.csv", "quantizers.csv"]


class StopsAt(Callback):
    """Asks the trainer to stop in a unit, at an iteration counted from 0."""

    def __init__(self, unit: str, iteration: int) -> None:
        self.unit, self.iteration = unit, iteration

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if (pl_module.unit_name, _[-1]) == (self.unit, self.iteration):
            trainer.should_stop = True


@pytest.mark.parametrize(("iteration", "kept"), [(0, []), (1, ["stage1-001"])])
def test_a_stage_that_a_callback_stops_is_not_finished(iteration: int, kept: list[str], tmp_path: Path) -> None:
    """Neither is the unit that it stopped in the middle, which must not be kept as a finished one."""
    parts = Parts(tmp_path / "checkpoints", "run")
    fitter = UnitFitter(Makes(), {}, tmp_path, [StopsAt("blocks.0", iteration)], parts)
    with pytest.raises(
        IsvitError, match=rf"^The step stage1 was stopped after {iteration + 1} of its 4 iterations, expec"
    ):
        fitter(stage_of(ranges=False))
    assert sorted(path.stem for path in parts.directory.iterdir()) == [*kept, "stage1-start"]


def test_a_callback_that_needs_what_is_not_there_is_one_sentence() -> None:
    told = r"^Lightning's trainer cannot take the step stage1 .* has no logger\), expected .*: change trainer\.$"
    with pytest.raises(IsvitError, match=told):
        UnitFitter(Makes(), {}, configured_callbacks=[LearningRateMonitor()])(stage_of())


def test_a_stage_that_an_option_cuts_is_not_finished() -> None:
    with pytest.raises(IsvitError, match=r"stopped after 1 of its 4 iterations, expected all of them: "):
        UnitFitter(partial(Makes(), limit_train_batches=1), {})(stage_of())


def test_a_step_that_trains_the_whole_network_must_be_finished_too(tmp_path: Path) -> None:
    work = work_on(tiny_vit(depth=1), image_batch(16, 8), Schedule(3, 2))
    switch(work.quantized.model, weights=True, activations=True)
    calibrate_weights(work.quantized.model)
    stage = FinetuneStage(Finetune(), work)
    UnitFitter(Makes(), {}, tmp_path)(stage)
    assert [row[:3] for row in losses_in(tmp_path)] == [("finetune", "all", 1), ("finetune", "all", 3)]
    with pytest.raises(IsvitError, match=r"^The step finetune was stopped after 2 of its 3 iterations"):
        UnitFitter(Makes(), {}, None, [StopsAt("all", 1)])(FinetuneStage(Finetune(), work))


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
