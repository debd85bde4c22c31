"""The step that only chooses ranges."""

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import calibrate_activations, calibrate_weights, quantizers, require_calibrated, switch
from isvit_lightning.recipe import Bits, Recipe, read_recipe
from isvit_lightning.stages import Ranges, UnitStage
from tests.helpers import image_batch, tiny_swin, tiny_vit
from tests.stages.fitting import changed, snapshot, work_on


def never(stage: UnitStage) -> None:
    raise AssertionError("nothing is tuned")


@pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
def test_activations_are_chosen_with_float_weights_and_then_weights(build: type, size: int) -> None:
    model, images = build(), image_batch(size, 5)
    work = work_on(model, images, ranges=False)
    Ranges().take(work, never)
    for quantizer in quantizers(work.quantized.model).values():
        assert quantizer.enabled is quantizer.calibrated is not quantizer.role.weight
    expected = read_recipe("isvit").open(model, Bits(3, 3)).model
    switch(expected, weights=False, activations=True)
    calibrate_activations(expected, lambda: expected(images))
    assert not changed(snapshot(expected), snapshot(work.quantized.model))
    Ranges("weights", "weights").take(work, never)
    calibrate_weights(expected)
    assert not changed(snapshot(expected), snapshot(work.quantized.model))
    assert all(quantizer.enabled for quantizer in quantizers(work.quantized.model).values())
    require_calibrated(work.quantized.model)


def test_only_the_range_images_are_looked_at() -> None:
    torch.manual_seed(3)
    model, images = tiny_vit(), image_batch(16, 8)
    ends = []
    for given, count in ((images, 3), (torch.cat([images[:3], 100 * images[3:]]), 3), (images, 8)):
        work = work_on(model, given, ranges=False, range_images=count)
        Ranges().take(work, never)
        ends.append(snapshot(work.quantized.model))
    assert not changed(ends[0], ends[1])
    assert changed(ends[0], ends[2])


def test_weights_need_a_step_before_them() -> None:
    assert (Ranges().needs_ranges, Ranges().chooses_ranges) == (False, True)
    weights = Ranges("w", "weights")
    assert (weights.needs_ranges, weights.chooses_ranges) == (True, False)
    assert Recipe(steps=[Ranges(), weights]).steps == [Ranges(), weights]
    with pytest.raises(IsvitError, match="step w needs ranges of activations that nobody has chosen"):
        Recipe(steps=[weights, Ranges()])


def test_what_a_row_behind_the_step_is() -> None:
    assert (Ranges().quantizes_weights, Ranges(of="weights").quantizes_weights) == (False, True)
    assert (Ranges().tunes, Ranges().has_row) == (False, True)


def test_other_tensors_are_refused() -> None:
    with pytest.raises(IsvitError, match="step ranges chooses ranges of 'biases', expected activations or weights"):
        Ranges(of="biases")  # type: ignore[arg-type]
