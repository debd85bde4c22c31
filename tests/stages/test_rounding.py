"""Learned rounding: where it starts, what it may reach, and that a hardened weight is on its grid."""

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import calibrate_weights, quantizers, switch
from isvit_lightning.quantizers import Log, Quantizer, Spec
from isvit_lightning.recipe import read_recipe
from isvit_lightning.stages import AdaRound, Inputs, Schedule, Tune, TuningStage
from isvit_lightning.stages.trainables import UnitTrainables, quantized_layers
from tests.helpers import image_batch, tiny_vit
from tests.stages.fitting import run, work_on


def opened() -> torch.nn.Module:
    model = work_on(tiny_vit(), image_batch()).quantized.model
    switch(model, weights=True, activations=True)
    calibrate_weights(model)
    return model


def trained(model: torch.nn.Module, choice: AdaRound | None = None) -> UnitTrainables:
    worker = (choice or AdaRound()).of(model, compiled=False)
    for group in worker.groups:
        for tensor in group.tensors:
            tensor.requires_grad_(True)
    return worker


def test_it_starts_at_the_weight_itself_where_that_is_in_range() -> None:
    model = opened()
    worker = trained(model)
    for layer, weight in zip(quantized_layers(model), worker.weights, strict=True):
        scale, zero = weight.quantizer.grid
        inside = ((layer.weight / scale).floor() >= -zero) & ((layer.weight / scale).ceil() <= 7 - zero)
        difference = (weight.quantize() - layer.weight).abs() / scale
        assert difference[inside].max() < 1e-3


def test_a_hardened_weight_is_on_its_grid_next_to_the_float_one() -> None:
    model = opened()
    before = [layer.weight.clone() for layer in quantized_layers(model)]
    worker = trained(model)
    with torch.no_grad():
        for group in worker.groups:
            group.tensors[0].normal_()
    names = set(model.state_dict())
    worker.harden()
    assert set(model.state_dict()) == names
    for layer, old in zip(quantized_layers(model), before, strict=True):
        quantizer = layer.weight_quantizer
        assert quantizer is not None
        assert torch.equal(quantizer.decode(quantizer.encode(layer.weight)), layer.weight)
        scale, zero = quantizer.grid
        inside = ((old / scale).floor() >= -zero) & ((old / scale).ceil() <= 7 - zero)
        assert ((layer.weight - old).abs() / scale)[inside].max() <= 1 + 1e-4


def test_the_weight_moves_with_its_rounding_as_the_formula_says() -> None:
    worker = trained(opened())
    weight = worker.weights[0]
    (slope,) = torch.autograd.grad(weight.quantize().sum(), weight.tensor)
    sigmoid = torch.sigmoid(weight.tensor)
    expected = 1.2 * sigmoid * (1 - sigmoid) * weight.quantizer.grid[0]
    moved = slope != 0
    torch.testing.assert_close(slope[moved], expected.expand_as(slope)[moved])
    assert moved.float().mean() > 0.8


@pytest.mark.parametrize("progress", [0.3, 0.6, 0.99])
def test_the_penalty_is_that_of_the_paper(progress: float) -> None:
    choice = AdaRound(weight=0.5, warmup=0.2, beta=(20.0, 2.0))
    worker = trained(opened(), choice)
    penalty = worker.penalty(progress)
    assert penalty is not None
    beta = 20 + (2 - 20) * (progress - 0.2) / 0.8
    ups = [(torch.sigmoid(weight.tensor) * 1.2 - 0.1).clamp(0, 1) for weight in worker.weights]
    expected = 0.5 * sum(float((1 - (2 * up - 1).abs() ** beta).sum()) for up in ups)
    assert float(penalty) == pytest.approx(expected, rel=1e-4)
    assert worker.penalty(0.1) is None


def test_another_grid_than_a_uniform_one_is_refused() -> None:
    model = opened()
    layer = quantized_layers(model)[0]
    layer.weight_quantizer = Quantizer(Spec(Log(), 4))
    with pytest.raises(IsvitError, match="Uniform"):
        AdaRound().of(model, compiled=False)


def test_rates_out_of_range_are_refused() -> None:
    with pytest.raises(IsvitError, match="AdaRound"):
        AdaRound(learning_rate=0)


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_a_step_ends_with_weights_on_the_grid_and_a_smaller_loss(drop: float) -> None:
    images = image_batch(count=8)
    work = work_on(tiny_vit(), images, Schedule(iterations=30, batch_size=8))
    choice = Tune("rounding", inputs=Inputs("mixed", drop=drop), trainables=AdaRound(learning_rate=5e-2))
    stage = TuningStage(choice, work)
    run(stage)
    for layer in quantized_layers(stage.network):
        quantizer = layer.weight_quantizer
        assert quantizer is not None
        assert torch.equal(quantizer(layer.weight), layer.weight)
    assert all(quantizer.held is None and quantizer.kept is None for quantizer in quantizers(stage.network).values())
    assert torch.isfinite(stage.last_loss)


def test_its_recipes_use_it() -> None:
    for name in ("brecq", "qdrop", "aphq", "fimaq", "lsvit"):
        steps = [step for step in read_recipe(name).steps if isinstance(step, Tune)]
        assert any(isinstance(step.trainables, AdaRound) for step in steps)
    assert any(isinstance(step, Tune) and step.inputs.drop == 0.5 for step in read_recipe("qdrop").steps)
