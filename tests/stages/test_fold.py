"""The fold as a step: what it changes stands in the reports."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from isvit_lightning.callbacks import UnitProgress
from isvit_lightning.callbacks.progress import UnitReport
from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import calibrate_activations, open_float, quantizers, switch
from isvit_lightning.quantizers import PerTensor
from isvit_lightning.recipe import Bits, Recipe, read_recipe
from isvit_lightning.stages import Fold, FoldStage, Schedule, Tune, UnitStage, Work
from isvit_lightning.transforms import is_foldable
from tests.helpers import image_batch, tiny_swin, tiny_vit
from tests.stages.fitting import changed, run, snapshot

NETWORK = pytest.mark.parametrize(
    ("build", "size", "recipe"),
    [(tiny_vit, 16, "isvit"), (tiny_swin, 32, "isvit"), (tiny_swin, 32, "repq")],
    ids=["vit", "swin", "swin_reductions"],
)
Build = Callable[[], nn.Module]


def work_of(build: Build, size: int, recipe: str) -> Work:
    """A network of 3 bits with ranges of activations."""
    model, images = build(), image_batch(size, 16)
    quantized = read_recipe(recipe).open(model, Bits(3, 3))
    switch(quantized.model, weights=False, activations=True)
    calibrate_activations(quantized.model, lambda: quantized.walk(images))
    return Work(quantized, open_float(model), images, Schedule())


def folded(choice: Fold, work: Work) -> tuple[FoldStage, list[UnitReport]]:
    """The stage behind its fit, and its reports."""
    progress, stage = UnitProgress(live=False), FoldStage(choice, work)
    run(stage, progress)
    return stage, progress.reports


@NETWORK
def test_rounding_makes_the_fold_exact_up_to_float32(build: Build, size: int, recipe: str) -> None:
    work = work_of(build, size, recipe)
    held = {wire.unit for wire in work.quantized.wires if is_foldable(wire)}
    _, reports = folded(Fold("stage2"), work)
    assert [report.unit for report in reports] == [unit.name for unit in work.quantized.units if unit.name in held]
    for report in reports:
        assert 0 <= report.last < 1e-4, report
        assert report.stage == "stage2"


@NETWORK
def test_the_published_fraction_changes_the_output(build: Build, size: int, recipe: str) -> None:
    _, reports = folded(Fold(round_zero_point=False), work_of(build, size, recipe))
    for report in reports:
        assert report.last > 1e-2, report


@NETWORK
def test_wires_end_per_tensor_and_one_step_is_one_unit(build: Build, size: int, recipe: str) -> None:
    work = work_of(build, size, recipe)
    wires = [wire for wire in work.quantized.wires if is_foldable(wire)]
    stage, reports = folded(Fold(), work)
    assert stage.steps == 1
    assert stage.epochs == len(reports) == len({wire.unit for wire in wires})
    for wire in wires:
        quantizer = wire.readers[0].input_quantizer
        assert isinstance(quantizer.granularity, PerTensor)
        assert quantizer.calibrated
        assert quantizer.enabled


def test_the_statistic_is_that_of_the_choice() -> None:
    for statistic in ("mean", "median"):
        torch.manual_seed(0)
        work = work_of(tiny_vit, 16, "isvit")
        scales = work.quantized.model.blocks[0].attn.qkv.input_quantizer.scale.clone()
        folded(Fold(statistic=statistic), work)  # type: ignore[arg-type]
        assert work.quantized.model.blocks[0].attn.qkv.input_quantizer.scale == getattr(scales, statistic)()


def test_where_nothing_can_be_folded_nothing_is_fitted() -> None:
    work, fitted = work_of(tiny_vit, 16, "round_to_nearest"), list[UnitStage]()
    before = snapshot(work.quantized.model)
    Fold().take(work, fitted.append)
    assert not fitted
    assert not changed(before, snapshot(work.quantized.model))
    work = work_of(tiny_vit, 16, "isvit")
    Fold("mine").take(work, fitted.append)
    assert [stage.name for stage in fitted] == ["mine"]


def test_a_fold_needs_ranges_before_it_and_is_no_row() -> None:
    assert (Fold().tunes, Fold().quantizes_weights, Fold().has_row) == (False, False, False)
    assert (Fold().needs_ranges, Fold().chooses_ranges) == (True, False)
    with pytest.raises(IsvitError, match="step mine needs ranges .* nobody has chosen"):
        Recipe(steps=[Fold("mine"), Tune()])
    with pytest.raises(IsvitError, match="step mine needs ranges .* nobody has chosen"):
        Recipe(steps=[Tune("first", activations=False), Fold("mine")])


def test_units_with_their_quantizers_off_are_folded_too() -> None:
    work = work_of(tiny_vit, 16, "isvit")
    for quantizer in quantizers(work.quantized.model).values():
        quantizer.enabled = False
    _, reports = folded(Fold(round_zero_point=False), work)
    assert [report.unit for report in reports] == ["blocks.0", "blocks.1"]
    # The float function does not change, whatever the zero point.
    assert all(0 <= report.last < 1e-4 for report in reports)
