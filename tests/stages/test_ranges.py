"""The step that only chooses ranges."""

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import calibrate_activations, calibrate_weights, quantizers, require_calibrated, switch
from isvit_lightning.quantizers import Grid, Search, Site, Spec
from isvit_lightning.recipe import Bits, Recipe, read_recipe
from isvit_lightning.search import Percentiles
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


class Noted(Search):
    """A search that remembers what it was shown."""

    sees_output = sees_gradients = True

    def __init__(self) -> None:
        self.sites: list[Site] = []

    def choose(self, spec: Spec, site: Site) -> Grid:
        self.sites.append(site)
        return Percentiles().choose(spec, site)


def test_operands_take_turns_for_as_many_rounds_as_are_told() -> None:
    model, images = tiny_vit(), image_batch(16, 5)
    work = work_on(model, images, ranges=False)
    searches = {path: Noted() for path in quantizers(work.quantized.model)}
    for path, quantizer in quantizers(work.quantized.model).items():
        quantizer.search = searches[path]
    step = Ranges(of="all", rounds=3)
    assert (step.needs_ranges, step.chooses_ranges, step.quantizes_weights) == (False, True, True)
    step.take(work, never)
    require_calibrated(work.quantized.model)
    assert all(quantizer.enabled for quantizer in quantizers(work.quantized.model).values())
    for path, search in searches.items():
        assert len(search.sites) == 3, path
        assert all(site.quantized is not None for site in search.sites[1:]) or path.startswith("patch_embed"), path
        assert all(site.gradients is not None and len(site.gradients) == 5 for site in search.sites), path
    layer = work.quantized.model.get_submodule("blocks.0.mlp.fc1")
    last = searches["blocks.0.mlp.fc1.input_quantizer"].sites[-1]
    assert torch.equal(last.quantized, layer.weight_quantizer(layer.weight))


def test_no_gradients_are_computed_for_searches_that_want_none(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_on(tiny_vit(), image_batch(16, 5), ranges=False)
    monkeypatch.setattr("isvit_lightning.stages.ranges.output_gradients", None)
    Ranges(of="all").take(work, never)
    require_calibrated(work.quantized.model)


def test_rounds_below_one_are_refused() -> None:
    with pytest.raises(IsvitError, match="step ranges has 0 rounds, expected 1 or more"):
        Ranges(rounds=0)


def test_what_a_row_behind_the_step_is() -> None:
    assert (Ranges().quantizes_weights, Ranges(of="weights").quantizes_weights) == (False, True)
    assert (Ranges().tunes, Ranges().has_row) == (False, True)


def test_other_tensors_are_refused() -> None:
    with pytest.raises(
        IsvitError, match="step ranges chooses ranges of 'biases', expected activations, weights or all"
    ):
        Ranges(of="biases")  # type: ignore[arg-type]
