"""A unit whose loss ends in NaN gets its best state back, and says so."""

import logging
from dataclasses import replace

import pytest
import torch

from isvit_lightning.callbacks import UnitProgress
from isvit_lightning.stages import Inputs, Schedule, Tune, UnitStage
from isvit_lightning.stages.rollback import BestState
from tests.helpers import image_batch, tiny_vit
from tests.stages.fitting import STAGE1, STAGE3, EachStep, changed, make_stage, run, snapshot

CHOICE = pytest.mark.parametrize("choice", [STAGE1, STAGE3], ids=["stage1", "stage3"])


def test_the_smallest_finite_loss_wins() -> None:
    tensor = torch.zeros(3, requires_grad=True)
    best = BestState([tensor])
    for value, loss in ((1.0, 5.0), (2.0, 3.0), (3.0, 4.0), (4.0, torch.nan), (5.0, torch.inf)):
        tensor.data.fill_(value)
        best.offer(torch.tensor(loss))
    assert best.finite(torch.tensor(1.0))
    assert not best.finite(torch.tensor(torch.nan))
    best.restore()
    assert tensor.tolist() == [2.0, 2.0, 2.0]
    assert best.loss == 3
    tensor.data[1] = torch.inf
    assert not best.finite(torch.tensor(1.0))


def test_without_a_finite_loss_the_first_state_stays() -> None:
    tensor = torch.ones(2)
    best = BestState([tensor])
    tensor.fill_(torch.nan)
    best.offer(torch.tensor(torch.nan))
    best.restore()
    assert tensor.tolist() == [1.0, 1.0]


@CHOICE
@pytest.mark.parametrize("poisoned", [0, 1, 13, 19])
def test_a_unit_that_ends_in_nan_is_rolled_back(choice: Tune, poisoned: int, caplog: pytest.LogCaptureFixture) -> None:
    stage = make_stage(replace(choice, inputs=Inputs("quantized")), tiny_vit(), image_batch(16, 12), Schedule(20, 8))
    states: list[tuple[float, dict[str, torch.Tensor]]] = []
    start: dict[str, torch.Tensor] = {}
    pending: dict[str, torch.Tensor] = {}

    def before(stage: UnitStage, step: int) -> None:
        if stage.unit.name == "blocks.0":
            if step == 0:
                start.update(snapshot(stage.unit.module))
            if step == poisoned:
                stage.unit.module.mlp.fc1.weight.data.fill_(torch.nan)
            pending.clear()
            pending.update(snapshot(stage.unit.module))

    def after(stage: UnitStage, step: int) -> None:
        if stage.unit.name == "blocks.0" and step < poisoned and step % 2 == 0:
            states.append((float(stage.last_loss), dict(pending)))

    progress = UnitProgress(live=False)
    with caplog.at_level(logging.WARNING):
        run(stage, EachStep(before), EachStep(after, after=True), progress)
    assert stage.rolled_back == ["blocks.0"]
    assert [message for message in caplog.messages if f"{choice.name} blocks.0: the loss is no number" in message]
    expected = min(states, key=lambda state: state[0])[1] if states else start
    assert not changed(expected, snapshot(stage.quantized.units[1].module))
    assert all(bool(parameter.isfinite().all()) for parameter in stage.network.parameters())
    later = [report for report in progress.reports if report.unit == "blocks.1"]
    assert later[0].last == later[0].last, "the next unit reads numbers"
    mine = [report for report in progress.reports if report.unit == "blocks.0"]
    assert (mine[0].last == min(loss for loss, _ in states)) if states else mine[0].last == torch.inf


@CHOICE
def test_a_unit_that_ends_well_is_left_alone(choice: Tune) -> None:
    stage = make_stage(choice, tiny_vit(), image_batch(16, 12), Schedule(5, 8))
    assert run(stage).rolled_back == []
