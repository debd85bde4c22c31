"""Ranges are chosen once before a stage, or anew before the stage or each unit by option."""

from typing import Literal

import pytest
import torch

from isvit_lightning.callbacks import CalibrateQuantizers
from isvit_lightning.networks import calibrate_activations, quantizers
from isvit_lightning.quantizers import Quantizer, Role
from isvit_lightning.recipe.method import Tuning
from isvit_lightning.stages import Schedule, UnitStage
from tests.helpers import image_batch, tiny_vit
from tests.stages.fitting import EachStep, make_stage, run

TITLE = pytest.mark.parametrize("title", ["stage 1", "stage 3"])
Moment = Literal["never", "stage", "unit"]


def activations(stage: UnitStage) -> dict[str, Quantizer]:
    return {name: q for name, q in quantizers(stage.network).items() if q.role is not Role.WEIGHT}


def grids(stage: UnitStage) -> dict[str, list[torch.Tensor]]:
    return {name: [buffer.clone() for buffer in q.buffers()] for name, q in activations(stage).items()}


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@TITLE
def test_everything_switched_on_is_calibrated_and_frozen_before_the_first_step(title: str) -> None:
    stage = make_stage(title, tiny_vit(), image_batch(16, 6), Schedule(1, 4), ranges=False)
    checked = []

    def look(stage: UnitStage, step: int) -> None:
        for quantizer in quantizers(stage.network).values():
            assert quantizer.calibrated is quantizer.frozen is quantizer.enabled
        checked.append(step)

    run(stage, EachStep(look))
    assert checked
    weights = [q for q in quantizers(stage.network).values() if q.role is Role.WEIGHT]
    assert all(quantizer.calibrated is (title == "stage 3") for quantizer in weights)


@pytest.mark.parametrize("moment", ["never", "stage", "unit"])
def test_existing_ranges_are_chosen_anew_by_option(moment: Moment) -> None:
    images = image_batch(16, 6)
    tuning = Tuning(recalibrate=moment, range_learning_rate=0)
    stage = make_stage("stage 3", tiny_vit(), images, Schedule(1, 4), tuning)
    # Ranges of other images, so that choosing anew shows.
    for quantizer in activations(stage).values():
        quantizer.enabled = True
    calibrate_activations(stage.network, lambda: stage.quantized.walk(10 * image_batch(16, 3)))
    before = grids(stage)
    at_first_step: dict[str, list[torch.Tensor]] = {}

    def look(stage: UnitStage, step: int) -> None:
        if not at_first_step:
            at_first_step.update(grids(stage))

    run(stage, EachStep(look))
    moved_early = {name for name in before if not same(before[name], at_first_step[name])}
    moved_late = {name for name in before if not same(at_first_step[name], grids(stage)[name])}
    assert bool(moved_early) is (moment == "stage")
    assert bool(moved_late) is (moment == "unit")
    assert all(quantizer.frozen for quantizer in activations(stage).values())


def test_a_unit_is_calibrated_on_the_inputs_that_it_is_tuned_with() -> None:
    images = image_batch(16, 6)
    stage = make_stage("stage 1", tiny_vit(), images, Schedule(1, 4), Tuning(recalibrate="unit", range_learning_rate=0))
    compared = []

    def look(stage: UnitStage, step: int) -> None:
        name, quantizer = next((n, q) for n, q in quantizers(stage.unit.module).items() if q.role is not Role.WEIGHT)
        seen: list[torch.Tensor] = []
        handle = quantizer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with torch.no_grad():
            stage.unit.module(stage.inputs[:4])
        handle.remove()
        before = [buffer.clone() for buffer in quantizer.buffers()]
        quantizer.unfreeze()
        quantizer.calibrate(seen[0])
        quantizer.freeze()
        assert same(before, list(quantizer.buffers())), name
        compared.append(name)

    run(stage, EachStep(look), range_images=4)
    assert len(compared) == 3


def test_only_the_range_images_are_looked_at() -> None:
    torch.manual_seed(3)
    model, images = tiny_vit(), image_batch(16, 8)
    spoiled = torch.cat([images[:3], 100 * images[3:]])
    found = []
    for given in (images, spoiled):
        stage = make_stage("stage 1", model, given, Schedule(1, 4), Tuning(range_learning_rate=0), ranges=False)
        found.append(grids(run(stage, range_images=3)))
    assert all(same(found[0][name], found[1][name]) for name in found[0])


def test_time_is_counted() -> None:
    callback = CalibrateQuantizers()
    assert callback.seconds == 0
    stage = make_stage("stage 1", tiny_vit(), image_batch(16, 4), Schedule(1, 4), ranges=False)
    run(stage, callback)
    assert callback.seconds > 0
