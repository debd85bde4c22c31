"""Stage 2 as a stage: what each fold changes stands in the reports."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import nn

from isvit_lightning.callbacks import UnitProgress
from isvit_lightning.callbacks.progress import UnitReport
from isvit_lightning.networks import calibrate_activations, open_float, open_quantized, switch
from isvit_lightning.quantizers import PerTensor
from isvit_lightning.recipe.method import Bits, Method
from isvit_lightning.stages import ReparameterizationStage, Schedule
from tests.helpers import image_batch, tiny_swin, tiny_vit
from tests.stages.fitting import run

NETWORK = pytest.mark.parametrize(
    ("build", "size", "reductions"),
    [(tiny_vit, 16, False), (tiny_swin, 32, False), (tiny_swin, 32, True)],
    ids=["vit", "swin", "swin_reductions"],
)


def fold(build: Callable[[], nn.Module], size: int, method: Method) -> tuple[ReparameterizationStage, list[UnitReport]]:
    """Stage 2 at 3 bits, and its reports."""
    model, images, progress = build(), image_batch(size, 16), UnitProgress(live=False)
    quantized = open_quantized(model, Bits(3, 3), method)
    switch(quantized.model, weights=False, activations=True)
    calibrate_activations(quantized.model, lambda: quantized.walk(images))
    stage = ReparameterizationStage(quantized, open_float(model), images, Schedule(), method)
    run(stage, progress)
    return stage, progress.reports


@NETWORK
def test_rounding_makes_the_fold_exact_up_to_float32(
    build: Callable[[], nn.Module], size: int, reductions: bool
) -> None:
    method = Method(reparameterize_reductions=reductions)
    stage, reports = fold(build, size, method)
    assert [report.unit for report in reports] == list(dict.fromkeys(unit_order(stage)))
    for report in reports:
        assert 0 <= report.last < 1e-4, report
        assert report.stage == "stage 2"


@NETWORK
def test_the_published_fraction_changes_the_output(build: Callable[[], nn.Module], size: int, reductions: bool) -> None:
    method = replace(Method(reparameterize_reductions=reductions), round_zero_point=False)
    _, reports = fold(build, size, method)
    for report in reports:
        assert report.last > 1e-2, report


@NETWORK
def test_pairs_end_per_tensor_and_one_step_is_one_unit(
    build: Callable[[], nn.Module], size: int, reductions: bool
) -> None:
    stage, _ = fold(build, size, Method(reparameterize_reductions=reductions))
    assert stage.steps == 1
    assert stage.epochs == len({pair.unit for pair in stage.quantized.pairs})
    for pair in stage.quantized.pairs:
        assert isinstance(pair.linear.input_quantizer.granularity, PerTensor)
        assert pair.linear.input_quantizer.calibrated
        assert pair.linear.input_quantizer.enabled


def unit_order(stage: ReparameterizationStage) -> list[str]:
    """Units with a pair, in order of execution."""
    pairs = {pair.unit for pair in stage.quantized.pairs}
    return [unit.name for unit in stage.quantized.units if unit.name in pairs]
