"""Held weights: one quantization for all micro-batches of a step, the same gradient."""

import pytest
import torch
from torch import nn

from isvit_lightning.layers import QuantConv2d, QuantLinear
from isvit_lightning.quantizers import PerChannel, Quantizer, Role
from isvit_lightning.stages.held import HeldWeights
from isvit_lightning.stages.trainables import StraightThrough
from tests.helpers import quantizer_of


def weight_quantizer(axis: int) -> Quantizer:
    return quantizer_of(None, 3, PerChannel(5, axis), Role.WEIGHT)


def linear() -> QuantLinear:
    torch.manual_seed(0)
    layer = QuantLinear(nn.Linear(12, 5), None, weight_quantizer(-2))
    layer.weight_quantizer.calibrate(layer.weight)
    return layer


def conv() -> QuantConv2d:
    torch.manual_seed(0)
    layer = QuantConv2d(nn.Conv2d(3, 5, 2), None, weight_quantizer(-4))
    layer.weight_quantizer.calibrate(layer.weight)
    return layer


def held_weights(layer: QuantLinear | QuantConv2d) -> HeldWeights:
    return HeldWeights(StraightThrough().of(layer, compiled=False).weights)


def gradient(layer: QuantLinear | QuantConv2d, parts: list[torch.Tensor], held: HeldWeights | None) -> torch.Tensor:
    """Gradient of the weight, summed over ``parts``."""
    layer.weight.grad = None
    for part in parts:
        layer(part).square().sum().backward()
    if held is not None:
        held.differentiate()
    assert layer.weight.grad is not None
    return layer.weight.grad.clone()


@pytest.mark.parametrize(("layer", "shape"), [(linear(), (4, 12)), (conv(), (4, 3, 6, 6))], ids=["linear", "conv"])
def test_outputs_and_gradients_are_those_without_it(layer: QuantLinear | QuantConv2d, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        # Some of the weights beyond the range, where the gradient stops.
        layer.weight[0] *= 3
    parts = [torch.randn(shape) for _ in range(3)]
    expected, outputs = gradient(layer, parts, None), [layer(part) for part in parts]
    assert 0 < int((expected == 0).sum()) < expected.numel()
    held = held_weights(layer)
    for _ in range(2):
        held.stand_in(layer.weight).grad = None
        with held:
            assert all(torch.equal(layer(part), output) for part, output in zip(parts, outputs, strict=True))
            found = gradient(layer, parts, held)
        assert torch.equal(found, expected)


def test_weights_are_quantized_once_and_anew_in_each_step() -> None:
    layer = linear()
    calls: list[int] = []
    layer.weight_quantizer.register_forward_hook(lambda module, *_: calls.extend([1] * (module.held is None)))
    held = held_weights(layer)
    for step in (1, 2):
        with held:
            first, second = layer(torch.ones(2, 12)), layer(torch.ones(2, 12))
        assert len(calls) == step
        assert torch.equal(first, second)
        with torch.no_grad():
            layer.weight.neg_()
    assert torch.equal(layer(torch.ones(2, 12)), first) is False
    assert len(calls) == 3


def test_weights_are_let_go_after_an_error() -> None:
    layer = linear()
    with pytest.raises(MemoryError), held_weights(layer):
        raise MemoryError
    assert layer.weight_quantizer.held is None


def test_float_weights_and_other_tensors_stand_for_themselves() -> None:
    layer = linear()
    assert layer.bias is not None
    assert held_weights(layer).stand_in(layer.bias) is layer.bias
    assert held_weights(layer).stand_in(layer.weight) is not layer.weight
    layer.weight_quantizer.enabled = False
    held = held_weights(layer)
    assert held.stand_in(layer.weight) is layer.weight
    with held:
        assert layer.weight_quantizer.held is None


def test_a_layer_without_a_weight_quantizer_holds_nothing() -> None:
    layer = QuantLinear(nn.Linear(12, 5), quantizer_of(), None)
    assert held_weights(layer).stand_in(layer.weight) is layer.weight
