"""Stage 1: which units it visits, and that float weights learn under quantized activations."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from isvit_lightning.callbacks import UnitProgress
from isvit_lightning.networks import quantizers
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe.method import Bits, Tuning
from isvit_lightning.stages import Schedule
from tests.helpers import image_batch, tiny_swin, tiny_vit
from tests.stages.fitting import EachStep, changed, make_stage, run, snapshot

NETWORK = pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])


@NETWORK
def test_the_patch_projection_is_not_visited(build: Callable[[], nn.Module], size: int) -> None:
    stage = make_stage("stage 1", build(), image_batch(size, 4), Schedule(1, 4))
    assert stage.quantized.units[0].name == "patch_embed.proj"
    assert stage.plan == list(range(1, len(stage.quantized.units)))
    before = snapshot(stage.network)
    run(stage)
    names = {name.split(".")[0] for name in changed(before, snapshot(stage.network))}
    assert "patch_embed" not in names
    assert "head" in names


@NETWORK
def test_weights_stay_float(build: Callable[[], nn.Module], size: int) -> None:
    stage = make_stage("stage 1", build(), image_batch(size, 4), Schedule(1, 4), ranges=False)
    run(stage)
    for quantizer in quantizers(stage.network).values():
        is_activation = quantizer.role is not Role.WEIGHT
        assert quantizer.enabled is quantizer.calibrated is quantizer.frozen is is_activation


@NETWORK
def test_the_loss_of_every_unit_falls(build: Callable[[], nn.Module], size: int) -> None:
    tuning, progress = Tuning(learning_rate=2e-3, range_learning_rate=0.0), UnitProgress(live=False)
    run(make_stage("stage 1", build(), image_batch(size, 8), Schedule(30, 8), tuning, bits=Bits(4, 4)), progress)
    assert len(progress.reports) > 2
    for report in progress.reports:
        assert 0 < report.last < report.first, report


def test_targets_are_those_of_the_float_network() -> None:
    model, images = tiny_vit(), image_batch(16, 4)
    targets: list[torch.Tensor] = []
    run(
        make_stage("stage 1", model, images, Schedule(1, 4)),
        EachStep(lambda stage, step: targets.append(stage.targets)),
    )
    with torch.no_grad():
        assert torch.equal(targets[-1], model(images))
