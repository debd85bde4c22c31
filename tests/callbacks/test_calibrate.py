"""Ranges are chosen once before a stage, or anew before the stage or each unit by option."""

from dataclasses import replace
from typing import Literal

import pytest
import torch

from isvit_lightning.callbacks import CalibrateQuantizers
from isvit_lightning.networks import calibrate_activations, quantizers
from isvit_lightning.quantizers import Quantizer
from isvit_lightning.stages import Fold, FoldStage, Schedule, Tune, TuningStage, UnitStage
from tests.helpers import image_batch, tiny_vit
from tests.stages.fitting import STAGE1, STAGE3, EachStep, changed, make_stage, run, snapshot, work_on

CHOICE = pytest.mark.parametrize("choice", [STAGE1, STAGE3], ids=["stage1", "stage3"])
Moment = Literal["never", "stage", "unit"]


def activations(stage: UnitStage) -> dict[str, Quantizer]:
    return {name: q for name, q in quantizers(stage.network).items() if not q.role.weight}


def grids(stage: UnitStage) -> dict[str, list[torch.Tensor]]:
    return {name: [buffer.clone() for buffer in q.buffers()] for name, q in activations(stage).items()}


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@CHOICE
def test_everything_switched_on_is_calibrated_before_the_first_step(choice: Tune) -> None:
    stage = make_stage(choice, tiny_vit(), image_batch(16, 6), Schedule(1, 4), ranges=False)
    checked = []

    def look(stage: UnitStage, step: int) -> None:
        for quantizer in quantizers(stage.network).values():
            assert quantizer.calibrated is quantizer.enabled
        checked.append(step)

    run(stage, EachStep(look))
    assert checked
    weights = [q for q in quantizers(stage.network).values() if q.role.weight]
    assert all(quantizer.calibrated is choice.weights for quantizer in weights)


@pytest.mark.parametrize("moment", ["never", "stage", "unit"])
def test_existing_ranges_are_chosen_anew_by_option(moment: Moment) -> None:
    images = image_batch(16, 6)
    choice = replace(STAGE3, recalibrate=moment, range_learning_rate=0.0)
    stage = make_stage(choice, tiny_vit(), images, Schedule(1, 4))
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


def test_a_unit_is_calibrated_on_the_inputs_that_it_is_tuned_with() -> None:
    images = image_batch(16, 6)
    choice = replace(STAGE1, recalibrate="unit", range_learning_rate=0.0)
    stage = TuningStage(choice, work_on(tiny_vit(), images, Schedule(1, 4), range_images=4))
    compared = []

    def look(stage: UnitStage, step: int) -> None:
        name, quantizer = next((n, q) for n, q in quantizers(stage.unit.module).items() if not q.role.weight)
        seen: list[torch.Tensor] = []
        handle = quantizer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with torch.no_grad():
            stage.unit(stage.inputs[:4])
        handle.remove()
        before = [buffer.clone() for buffer in quantizer.buffers()]
        quantizer.calibrate(seen[0])
        assert same(before, list(quantizer.buffers())), name
        compared.append(name)

    run(stage, EachStep(look))
    assert len(compared) == 3


def test_only_the_range_images_are_looked_at() -> None:
    torch.manual_seed(3)
    model, images = tiny_vit(), image_batch(16, 8)
    spoiled = torch.cat([images[:3], 100 * images[3:]])
    found = []
    for given in (images, spoiled):
        choice = replace(STAGE1, range_learning_rate=0.0)
        stage = TuningStage(choice, work_on(model, given, Schedule(1, 4), ranges=False, range_images=3))
        found.append(grids(run(stage)))
    assert all(same(found[0][name], found[1][name]) for name in found[0])


def test_time_is_counted() -> None:
    callback = CalibrateQuantizers()
    assert callback.seconds == 0
    stage = make_stage(STAGE1, tiny_vit(), image_batch(16, 4), Schedule(1, 4), ranges=False)
    run(stage, callback)
    assert callback.seconds > 0


@pytest.mark.parametrize("chosen", [True, False])
def test_ranges_that_an_earlier_run_chose_are_left_alone(chosen: bool) -> None:
    stage = make_stage(replace(STAGE3, recalibrate="stage"), tiny_vit(), image_batch(16, 4), Schedule(1, 4))
    for quantizer in quantizers(stage.network).values():
        if quantizer.role.weight:
            quantizer.calibrate(torch.ones_like(quantizer.scale))
    before = snapshot(stage.network)
    stage.ranges_chosen = chosen
    seen: list[set[str]] = []
    run(stage, EachStep(lambda stage, _: seen.append(changed(before, snapshot(stage.network)))))
    assert (not seen[0]) is chosen


def test_a_step_that_tunes_nothing_gets_the_ranges_that_are_missing() -> None:
    work = work_on(tiny_vit(), image_batch(16, 4), ranges=False)
    for quantizer in quantizers(work.quantized.model).values():
        quantizer.enabled = not quantizer.role.weight
    run(FoldStage(Fold(), work))
    for quantizer in quantizers(work.quantized.model).values():
        assert quantizer.calibrated is not quantizer.role.weight
