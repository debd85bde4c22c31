"""The whole-network step: what it makes small, what it ends with, and that two processes end with the same weights."""

from typing import Any

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import quantizers
from isvit_lightning.recipe import read_recipe
from isvit_lightning.run.strategy import UnitStrategy
from isvit_lightning.stages import Finetune, FinetuneStage, Schedule, Stage, StraightThrough, Work
from isvit_lightning.stages.finetune import outputs_of
from isvit_lightning.stages.losses import divergence
from isvit_lightning.system.processes import world_size
from tests.helpers import image_batch, quiet_trainer, relative_change, tiny_swin, tiny_vit
from tests.several import in_processes
from tests.stages.fitting import changed, snapshot, work_on

CHOICE = Finetune("finetune", trainables=StraightThrough(1e-2))


def fit(stage: Stage) -> None:
    options: dict[str, Any] = {"devices": world_size(), "strategy": UnitStrategy()} if world_size() > 1 else {}
    quiet_trainer(max_epochs=stage.epochs, num_sanity_val_steps=0, **{"devices": 1, **options}).fit(stage)


def work(images: int = 16, iterations: int = 20) -> Work:
    return work_on(tiny_vit(), image_batch(count=images), Schedule(iterations, 8), number=4)


def distance(work: Work, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float(divergence(outputs_of(work.target, images)[-1], outputs_of(work.quantized, images)[-1]).mean())


def test_outputs_end_with_the_logits() -> None:
    model, images = tiny_vit(), image_batch()
    opened = work_on(model, images).target
    assert torch.equal(outputs_of(opened, images)[-1], model(images))
    assert len(outputs_of(opened, images)) == len(opened.units)


def test_the_divergence_is_that_of_kullback_and_leibler() -> None:
    wanted, given = torch.randn(4, 5), torch.randn(4, 5)
    p, q = wanted.softmax(1), given.softmax(1)
    slow = sum(float(p[i, j]) * float((p[i, j] / q[i, j]).log()) for i in range(4) for j in range(5)) / 4
    assert float(divergence(wanted, given).mean()) == pytest.approx(slow, rel=1e-4)
    assert float(divergence(wanted, wanted).abs().max()) == 0


def test_it_comes_closer_to_the_float_network() -> None:
    given = work()
    choice = Finetune("finetune", held_back=0.0, trainables=StraightThrough(1e-2))
    stage = FinetuneStage(choice, given)
    choice.take(given, lambda _stage: None)
    before = distance(given, given.images)
    fit(stage)
    assert distance(given, given.images) < before
    assert not any(parameter.requires_grad for parameter in given.quantized.model.parameters())


def test_it_ends_with_the_best_state_on_what_it_held_back() -> None:
    given = work()
    stages: list[FinetuneStage] = []

    def run(stage: Any) -> None:
        stages.append(stage)
        fit(stage)

    CHOICE.take(given, run)
    (stage,) = stages
    assert len(stage.held_back) == 4
    assert len(stage.divergences) == 11
    assert distance(given, stage.held_back) == pytest.approx(min(stage.divergences), rel=1e-4)


def test_a_rate_that_ruins_everything_ends_where_it_began() -> None:
    given = work()
    CHOICE.take(given, lambda _stage: None)
    before = snapshot(given.quantized.model)
    Finetune("finetune", trainables=StraightThrough(100.0), range_learning_rate=10.0).take(given, fit)
    assert changed(before, snapshot(given.quantized.model)) == set()


def test_weights_and_scales_move_but_no_norm() -> None:
    given = work()
    CHOICE.take(given, lambda _stage: None)
    before = snapshot(given.quantized.model)
    Finetune("finetune", held_back=0.0).take(given, fit)
    moved = changed(before, snapshot(given.quantized.model))
    assert "blocks.0.attn.qkv.weight" in moved
    assert "blocks.0.mlp.fc2.input_quantizer.scale" in moved
    assert not any("norm" in name for name in moved)
    assert all(quantizer.calibrated for quantizer in quantizers(given.quantized.model).values())


def state_after() -> dict[str, Any]:
    """As arrays: tensors cannot outlive the process that sends them."""
    given = work()
    Finetune("finetune", iterations=4, held_back=0.25).take(given, fit)
    return {name: value.numpy() for name, value in snapshot(given.quantized.model).items()}


def test_two_processes_hold_the_same_network() -> None:
    first, second = in_processes(state_after, 2)
    alone = state_after()
    for name, value in first.items():
        assert (value == second[name]).all(), name
        # Adam makes a whole step of a gradient that is rounding error: single elements may differ, tensors may not.
        here, there = torch.from_numpy(value), torch.from_numpy(alone[name])
        assert torch.equal(here, there) or relative_change(here, there) < 5e-3, name


def test_numbers_out_of_range_are_refused() -> None:
    for wrong in ({"held_back": 1.0}, {"checks": 0}, {"iterations": 0}, {"unit_weight": -1.0}):
        with pytest.raises(IsvitError, match="finetune"):
            Finetune("finetune", **wrong)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(IsvitError, match="held_back"):
        FinetuneStage(Finetune("finetune", held_back=0.99), work(images=8))


def test_a_swin_is_trained_too() -> None:
    given = work_on(tiny_swin(), image_batch(32, 8), Schedule(2, 4))
    Finetune("finetune").take(given, fit)
    assert outputs_of(given.quantized, given.images)[-1].shape == (8, 5)


def test_its_recipe_ends_with_it() -> None:
    steps = read_recipe("isvit_finetuned").steps
    assert isinstance(steps[-1], Finetune)
    assert steps[:-1] == read_recipe("isvit").steps
