"""Stage 3: every unit learns through its own rounding, on grids that were chosen once."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from isvit_lightning.callbacks import UnitProgress
from isvit_lightning.networks import quantizers
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe.method import Bits, Tuning
from isvit_lightning.stages import Schedule, UnitStage
from tests.helpers import image_batch, tiny_swin, tiny_vit
from tests.stages.fitting import EachStep, make_stage, run

NETWORK = pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])


@NETWORK
def test_every_unit_is_visited_and_everything_is_on(build: Callable[[], nn.Module], size: int) -> None:
    stage = run(make_stage("stage 3", build(), image_batch(size, 4), Schedule(1, 4)))
    assert stage.plan == list(range(len(stage.quantized.units)))
    for quantizer in quantizers(stage.network).values():
        assert quantizer.enabled
        assert quantizer.calibrated
        assert quantizer.frozen


@NETWORK
def test_the_loss_of_the_blocks_falls(build: Callable[[], nn.Module], size: int) -> None:
    tuning, progress = Tuning(learning_rate=2e-3, inputs="quantized"), UnitProgress(live=False)
    run(make_stage("stage 3", build(), image_batch(size, 8), Schedule(20, 8), tuning, bits=Bits(4, 4)), progress)
    blocks = [report for report in progress.reports if "blocks" in report.unit]
    assert len(blocks) >= 2
    for report in blocks:
        assert 0 < report.last < report.first, report


def test_grids_of_weights_are_chosen_once() -> None:
    stage = make_stage("stage 3", tiny_vit(), image_batch(16, 4), Schedule(2, 4))
    scales = []

    def look(stage: UnitStage, step: int) -> None:
        scales.append([q.scale.clone() for q in quantizers(stage.network).values() if q.role is Role.WEIGHT])

    run(stage, EachStep(look))
    assert len(scales[0]) == 10
    for later in scales[1:]:
        assert all(torch.equal(a, b) for a, b in zip(scales[0], later, strict=True))


def test_a_weight_moves_although_it_is_rounded() -> None:
    stage = make_stage("stage 3", tiny_vit(), image_batch(16, 4), Schedule(2, 4))
    before = stage.network.patch_embed.proj.weight.detach().clone()
    run(stage)
    assert not torch.equal(stage.network.patch_embed.proj.weight, before)
