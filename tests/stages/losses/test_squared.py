"""Losses against slow arithmetic: squared errors, and errors in units of what the float network varies by."""

import math

import pytest
import torch
from torch import nn

from isvit_lightning.layers import QuantConv2d
from isvit_lightning.networks import SINGLE, Data, Unit
from isvit_lightning.stages import NormalizedError, SquaredError
from isvit_lightning.stages.losses import Surroundings
from isvit_lightning.stages.losses.squared import channel_variance, reconstruction_loss, token_variance
from isvit_lightning.stages.passes import Held

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(3, 7, 5), (2, 4, 3, 6), (4, 9)], ids=["tokens", "map", "head"])
def test_loss_is_summed_over_axis_1_and_averaged_over_the_rest(shape: tuple[int, ...]) -> None:
    output, target = torch.randn(shape), torch.randn(shape)
    kept = output.clone()
    rest = [size for axis, size in enumerate(shape) if axis != 1]
    total = sum(
        (float(a) - float(b)) ** 2 for a, b in zip(output.flatten().tolist(), target.flatten().tolist(), strict=True)
    )
    assert float(reconstruction_loss(output, target)) == pytest.approx(total / math.prod(rest), rel=1e-5)
    assert float(reconstruction_loss(output, target)) == pytest.approx(
        float((output - target).pow(2).sum(1).mean()), rel=1e-5
    )
    assert torch.equal(output, kept)


def held(tensor: torch.Tensor) -> Held:
    return Held({SINGLE: tensor})


def test_normalized_loss_is_the_error_in_units_of_each_tokens_variance() -> None:
    output, target = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    target[0, 0] *= 100
    variance = token_variance(held(target), nn.Identity())[SINGLE]
    assert variance.shape == (2, 5, 1)
    slow = [
        float((output[i, j] - target[i, j]).square().mean() / target[i, j].var()) for i in range(2) for j in range(5)
    ]
    assert float(reconstruction_loss(output, target, variance)) == pytest.approx(sum(slow) / 2, rel=1e-4)


def test_variances_are_taken_a_few_images_at_a_time() -> None:
    target = torch.randn(37, 3, 8)
    found = token_variance(held(target), nn.Identity())[SINGLE]
    torch.testing.assert_close(found, target.var(dim=-1, keepdim=True) + torch.finfo(torch.float32).eps)


def test_logits_and_the_patch_projection_have_no_tokens() -> None:
    assert token_variance(held(torch.randn(4, 10)), nn.Identity()) == {}
    conv = QuantConv2d(nn.Conv2d(3, 8, 2), None, None)
    assert token_variance(held(torch.randn(4, 8, 2, 2)), conv) == {}


def test_a_channel_varies_over_images_and_tokens() -> None:
    first, second = torch.randn(40, 6, 3) * torch.tensor([1e-3, 1.0, 500.0]) + 7, torch.randn(40, 2)
    found = channel_variance(Held({"a": first, "b": second}), CPU)
    for values, variance in ((first, found["a"]), (second, found["b"])):
        expected = values.double().flatten(0, -2).var(dim=0, correction=0) + torch.finfo(torch.float32).eps
        torch.testing.assert_close(variance, expected.float())


def unit_of(mixed: bool = False) -> Unit:
    return Unit("unit", nn.Identity(), lambda value: value, mixed=mixed, named=True)


def around(targets: Data, mixed: bool = False) -> Surroundings:
    return Surroundings(unit_of(mixed), Held(targets), CPU, lambda rows: {})


def rows() -> tuple[Data, Data]:
    """Outputs and targets of a unit that gives tokens and logits."""
    outputs = {"tokens": torch.randn(20, 5, 8), "logits": torch.randn(20, 4)}
    targets = {"tokens": torch.randn(20, 5, 8) * torch.arange(1.0, 6.0).view(5, 1), "logits": torch.randn(20, 4) * 3}
    return outputs, targets


PLACES = torch.tensor([17, 3, 3, 19])


def of_places(data: Data) -> Data:
    return {name: tensor[PLACES] for name, tensor in data.items()}


def test_the_squared_error_is_summed_over_outputs() -> None:
    outputs, targets = rows()
    loss = SquaredError().prepare(around(targets))
    expected = sum(
        float((outputs[name][PLACES] - target[PLACES]).square().sum(dim=1).mean()) for name, target in targets.items()
    )
    assert float(loss(of_places(outputs), of_places(targets), PLACES)) == pytest.approx(expected, rel=1e-5)


def test_the_normalized_error_reads_the_variance_of_the_images_of_the_batch() -> None:
    outputs, targets = rows()
    loss = NormalizedError().prepare(around(targets))
    variance = targets["tokens"].var(dim=-1, keepdim=True)
    tokens = (outputs["tokens"] - targets["tokens"]).square() / variance
    logits = (outputs["logits"] - targets["logits"]).square()
    expected = tokens[PLACES].sum(dim=1).mean() + logits[PLACES].sum(dim=1).mean()
    assert float(loss(of_places(outputs), of_places(targets), PLACES)) == pytest.approx(float(expected), rel=1e-4)


def test_channels_of_different_quantities_are_divided_by_their_own_variance() -> None:
    outputs, targets = rows()
    loss = NormalizedError().prepare(around(targets, mixed=True))
    expected = 0.0
    for name, target in targets.items():
        variance = target.flatten(0, -2).var(dim=0, correction=0)
        expected += float(((outputs[name] - target).square() / variance)[PLACES].sum(dim=1).mean())
    assert float(loss(of_places(outputs), of_places(targets), PLACES)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_target_that_does_not_vary_gives_a_finite_loss(mixed: bool) -> None:
    targets = {SINGLE: torch.ones(4, 3, 5)}
    loss = NormalizedError().prepare(around(targets, mixed))
    places = torch.arange(4)
    assert float(loss(targets, targets, places)) == 0
    assert math.isfinite(float(loss({SINGLE: torch.zeros(4, 3, 5)}, targets, places)))


def test_the_loss_differentiates_towards_the_outputs() -> None:
    outputs, targets = rows()
    outputs = {name: tensor.requires_grad_() for name, tensor in outputs.items()}
    NormalizedError().prepare(around(targets))(outputs, targets, torch.arange(20)).backward()
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in outputs.values())
