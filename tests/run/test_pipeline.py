"""The stages in order, and what remains of them where tuning is switched off."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from isvit_lightning.networks import quantizers, require_calibrated
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe.method import Bits, Method, Tuning, repq, round_to_nearest
from isvit_lightning.stages import Calibration, Schedule, UnitStage, calibrate_network, quantize_without_tuning
from tests.helpers import image_batch, tiny_swin, tiny_vit
from tests.stages.fitting import changed, run, snapshot

NETWORK = pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
OFF = Tuning(enabled=False)
PUBLISHED_TUNING = Tuning(learning_rate=4e-5, range_learning_rate=0)
PUBLISHED = Method(
    eta_candidates="published",
    extra_softmax_codes=1,
    clamp_zero_points=False,
    round_zero_point=False,
    stage1=PUBLISHED_TUNING,
    stage3=replace(PUBLISHED_TUNING, inputs="quantized"),
)


def calibration(model: nn.Module, size: int, method: Method | None = None, bits: int = 3) -> Calibration:
    torch.manual_seed(5)
    return Calibration(model, image_batch(size, 6), Bits(bits, bits), method or Method(), Schedule(1, 4))


def fit(stage: UnitStage) -> None:
    run(stage)


@NETWORK
def test_stages_run_in_order_and_everything_ends_calibrated(build: Callable[[], nn.Module], size: int) -> None:
    titles: list[str] = []
    marks: list[str] = []

    def listed_fit(stage: UnitStage) -> None:
        titles.append(stage.title)
        run(stage)

    def after_stage1(network: nn.Module) -> None:
        marks.extend(titles)
        weights = [quantizer.enabled for quantizer in quantizers(network).values() if quantizer.role is Role.WEIGHT]
        assert not any(weights)
        require_calibrated(network)

    quantized = calibrate_network(calibration(build(), size), listed_fit, after_stage1)
    assert titles == ["stage 1", "stage 2", "stage 3"]
    assert marks == ["stage 1"]
    assert all(quantizer.enabled and quantizer.calibrated for quantizer in quantizers(quantized.model).values())


@NETWORK
def test_the_values_of_the_network_are_left_untouched(build: Callable[[], nn.Module], size: int) -> None:
    model = build()
    before, images = snapshot(model), image_batch(size)
    logits = model(images)
    calibrate_network(calibration(model, size), fit)
    assert not changed(before, snapshot(model))
    assert torch.equal(model(images), logits)


def test_mode_and_gradients_of_the_network_are_left_untouched() -> None:
    model = tiny_vit().train().requires_grad_(True)
    calibrate_network(calibration(model, 16), fit)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("method", "titles"),
    [
        (Method(stage1=OFF), ["stage 2", "stage 3"]),
        (Method(stage3=OFF), ["stage 1", "stage 2"]),
        (Method(stage1=OFF, stage3=OFF), ["stage 2"]),
        (Method(reparameterize=False), ["stage 1", "stage 3"]),
        (round_to_nearest(), []),
        (repq(), ["stage 2"]),
    ],
    ids=["no_stage1", "no_stage3", "no_tuning", "no_stage2", "round_to_nearest", "repq"],
)
@NETWORK
def test_stages_that_are_switched_off(
    build: Callable[[], nn.Module], size: int, method: Method, titles: list[str]
) -> None:
    called: list[bool] = []
    given = calibration(build(), size, method)
    ran: list[str] = []

    def listed_fit(stage: UnitStage) -> None:
        ran.append(stage.title)
        run(stage)

    quantized = calibrate_network(given, listed_fit, lambda network: called.append(True))
    assert ran == titles
    assert called == [True]
    require_calibrated(quantized.model)
    assert all(quantizer.enabled for quantizer in quantizers(quantized.model).values())
    assert bool(torch.isfinite(quantized.model(given.images)).all())


@pytest.mark.parametrize("method", [round_to_nearest(), repq(), Method(stage1=OFF, stage3=OFF)])
@NETWORK
def test_without_tuning_both_ways_give_the_same_bits(build: Callable[[], nn.Module], size: int, method: Method) -> None:
    given = calibration(build(), size, method)
    short = quantize_without_tuning(given)
    long = calibrate_network(given, fit)
    assert short.model.state_dict().keys() == long.model.state_dict().keys()
    assert not changed(snapshot(short.model), snapshot(long.model))


def test_quantize_without_tuning_keeps_weights_and_ignores_the_tunings() -> None:
    model = tiny_vit()
    network = quantize_without_tuning(calibration(model, 16, Method(reparameterize=False))).model
    for name, parameter in model.named_parameters():
        assert torch.equal(network.get_parameter(name), parameter)
    require_calibrated(network)


@pytest.mark.parametrize("bits", [3, 4])
def test_published_arithmetic_spends_one_code_more_on_softmax(bits: int) -> None:
    network = calibrate_network(calibration(tiny_vit(), 16, PUBLISHED, bits), fit).model
    for quantizer in quantizers(network).values():
        assert quantizer.n_codes == 2**bits + (quantizer.role is Role.ATTN_PROB)
    fractions = [
        quantizer.zero_point
        for quantizer in quantizers(network).values()
        if quantizer.role in (Role.QKV_IN, Role.FC1_IN)
    ]
    assert any(not torch.equal(zero_point, zero_point.round()) for zero_point in fractions)


def test_stage_1_off_calibrates_on_the_range_images_alone() -> None:
    model = tiny_vit()
    method = Method(range_images=2, stage1=OFF, stage3=OFF, reparameterize=False)
    given = calibration(model, 16, method)
    few = quantize_without_tuning(given).model
    alone = quantize_without_tuning(replace(given, images=given.images[:2])).model
    assert not changed(snapshot(few), snapshot(alone))
