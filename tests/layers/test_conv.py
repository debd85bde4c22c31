"""QuantConv2d against the same arithmetic written out."""

from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantConv2d
from isvit_lightning.quantizers import PerChannel, Role
from tests.helpers import quantizer_of


def build(**arguments: Any) -> tuple[nn.Conv2d, QuantConv2d]:
    """A float convolution of 4 to 6 channels and its calibrated quantized form."""
    conv = nn.Conv2d(4, 6, **{"kernel_size": 3, **arguments})
    layer = QuantConv2d(conv, None, quantizer_of(None, 3, PerChannel(6, axis=-4), Role.WEIGHT))
    layer.weight_quantizer.calibrate(conv.weight)
    return conv, layer


ARGUMENTS = pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bias": False},
        {"kernel_size": 4, "stride": 4},
        {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 2)},
        {"dilation": 2},
        {"groups": 2},
    ],
)


@ARGUMENTS
def test_only_the_weight_is_quantized(arguments: dict[str, Any]) -> None:
    conv, layer = build(**arguments)
    images = torch.randn(2, 4, 12, 13)
    quantizer = layer.weight_quantizer
    weight = quantizer.decode(quantizer.encode(conv.weight))
    expected = nn.functional.conv2d(images, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    assert torch.equal(layer(images), expected)


@ARGUMENTS
def test_switched_off_is_the_float_layer(arguments: dict[str, Any]) -> None:
    conv, layer = build(**arguments)
    layer.weight_quantizer.enabled = False
    images = torch.randn(2, 4, 12, 13)
    assert torch.equal(layer(images), conv(images))


@ARGUMENTS
def test_without_quantizers_it_is_the_float_layer(arguments: dict[str, Any]) -> None:
    conv, _ = build(**arguments)
    images = torch.randn(2, 4, 12, 13)
    assert torch.equal(QuantConv2d(conv, None, None)(images), conv(images))


@ARGUMENTS
def test_product_is_the_layer_without_bias_and_quantizers(arguments: dict[str, Any]) -> None:
    conv, layer = build(**arguments)
    images = torch.randn(2, 4, 12, 13)
    expected = nn.functional.conv2d(images, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    assert torch.equal(layer.product("input", images, conv.weight), expected)
    assert torch.equal(layer.product("weight", conv.weight, images), expected)
    assert not layer.channels_last


def test_parameters_are_taken_over_and_named_as_before() -> None:
    conv, layer = build()
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_each_filter_has_its_own_grid() -> None:
    conv = nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        conv.weight.mul_(10.0 ** torch.arange(6).view(6, 1, 1, 1))
    quantizer = quantizer_of(None, 4, PerChannel(6, axis=-4), Role.WEIGHT)
    quantizer.calibrate(conv.weight)
    ratios = quantizer.scale.flatten()[1:] / quantizer.scale.flatten()[:-1]
    assert quantizer.scale.shape == (6, 1, 1, 1)
    assert bool(((ratios > 5) & (ratios < 20)).all())


@pytest.mark.parametrize(
    "arguments", [{"padding": "same"}, {"padding": "valid"}, {"padding": 1, "padding_mode": "reflect"}]
)
def test_padding_by_word_or_other_than_zeros_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(IsvitError, match="padding"):
        build(**arguments)


@pytest.mark.parametrize("padding", [0, 1])
def test_an_input_quantizer_comes_before_the_padding(padding: int) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=padding)
    weight = quantizer_of(None, 3, PerChannel(6, axis=-4), Role.WEIGHT)
    inputs = quantizer_of(role=Role("neck_in"))
    layer = QuantConv2d(conv, inputs, weight)
    maps = torch.randn(2, 4, 7, 8) + 3  # a grid without room for what padding is not: zero
    weight.calibrate(conv.weight)
    inputs.calibrate(maps)
    rounded = inputs.decode(inputs.encode(maps))
    expected = nn.functional.conv2d(rounded, weight.decode(weight.encode(conv.weight)), conv.bias, padding=padding)
    assert torch.equal(layer(maps), expected)
    assert not torch.equal(rounded, maps)
