"""QuantLinear against the same arithmetic written out."""

import pytest
import torch
from torch import nn

from isvit_lightning.layers import QuantLinear
from isvit_lightning.quantizers import PerChannel, Role
from tests.helpers import quantizer_of


def build(bias: bool = True) -> tuple[nn.Linear, QuantLinear]:
    """A float layer of 6 to 4 features and its calibrated quantized form, per channel on both sides."""
    linear = nn.Linear(6, 4, bias=bias)
    layer = QuantLinear(
        linear,
        quantizer_of(None, 4, PerChannel(6), Role.QKV_IN),
        quantizer_of(None, 3, PerChannel(4, axis=-2), Role.WEIGHT),
    )
    layer.input_quantizer.calibrate(torch.randn(50, 6))
    layer.weight_quantizer.calibrate(linear.weight)
    return linear, layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6)])
def test_output_is_the_product_of_grid_values(bias: bool, shape: tuple[int, ...]) -> None:
    linear, layer = build(bias)
    tensor = torch.randn(shape)
    inputs, weights = layer.input_quantizer, layer.weight_quantizer
    expected = nn.functional.linear(
        inputs.decode(inputs.encode(tensor)), weights.decode(weights.encode(linear.weight)), linear.bias
    )
    assert torch.equal(layer(tensor), expected)
    assert not torch.allclose(layer(tensor), linear(tensor))


@pytest.mark.parametrize("bias", [True, False])
def test_switched_off_is_the_float_layer(bias: bool) -> None:
    linear, layer = build(bias)
    layer.input_quantizer.enabled = layer.weight_quantizer.enabled = False
    tensor = torch.randn(2, 5, 6)
    assert torch.equal(layer(tensor), linear(tensor))


def test_without_quantizers_it_is_the_float_layer() -> None:
    linear, layer = build()
    tensor = torch.randn(2, 5, 6)
    inputs, weights = layer.input_quantizer, layer.weight_quantizer
    assert torch.equal(QuantLinear(linear, None, None)(tensor), linear(tensor))
    expected = nn.functional.linear(inputs(tensor), linear.weight, linear.bias)
    assert torch.equal(QuantLinear(linear, inputs, None)(tensor), expected)
    expected = nn.functional.linear(tensor, weights(linear.weight), linear.bias)
    assert torch.equal(QuantLinear(linear, None, weights)(tensor), expected)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 5, 6)])
def test_product_is_the_layer_without_bias_and_quantizers(shape: tuple[int, ...]) -> None:
    linear, layer = build()
    tensor = torch.randn(shape)
    expected = nn.functional.linear(tensor, linear.weight)
    assert torch.equal(layer.product("input", tensor, linear.weight), expected)
    assert torch.equal(layer.product("weight", linear.weight, tensor), expected)
    assert layer.channels_last


def test_parameters_are_taken_over_and_named_as_before() -> None:
    linear, layer = build()
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert (layer.in_features, layer.out_features) == (6, 4)


def test_weights_outside_the_range_get_no_gradient() -> None:
    _, layer = build()
    quantizer = layer.weight_quantizer
    low, high = quantizer.decode(torch.zeros(4, 1)), quantizer.decode(torch.full((4, 1), 7.0))
    with torch.no_grad():
        layer.weight[0, 0] = high[0, 0] + 5
        layer.weight[1, 1] = low[1, 0] - 5
    layer(torch.randn(20, 6)).square().sum().backward()
    clipped = layer.weight.grad == 0
    assert bool(clipped[0, 0])
    assert bool(clipped[1, 1])
    assert int(clipped.sum()) < clipped.numel()


def test_gradients_of_bias_and_input() -> None:
    _, layer = build()
    tensor = (torch.randn(9, 6) * 0.1).requires_grad_()
    layer(tensor).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((4,), 9.0))
    torch.testing.assert_close(tensor.grad, layer.weight_quantizer(layer.weight).sum(0).expand(9, 6))
