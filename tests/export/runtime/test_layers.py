"""Integer layers, against the quantized layers that they stand for."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from isvit_lightning.export.lower import LoweredConv2d, LoweredLinear, LoweredMatMul, lower
from isvit_lightning.export.runtime import products
from isvit_lightning.export.runtime.layers import Int8Linear, IntegerMatMul, OneDnnConv2d, OneDnnLinear
from isvit_lightning.export.runtime.products import has_onednn, has_wide_sums
from isvit_lightning.layers import QuantConv2d, QuantMatMul
from isvit_lightning.quantizers import Format, Granularity, PerChannel, PerTensor, Role, ShiftedLog, Sulq
from tests.export.test_lower import draws, linear, quantizer

KINDS = [Int8Linear, pytest.param(OneDnnLinear, marks=pytest.mark.skipif(not has_onednn(), reason="no oneDNN here"))]
Kind = Callable[..., nn.Module]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("bits", "form"),
    [
        (2, None),
        (3, None),
        (4, None),
        (7, None),
        (8, None),
        (3, Sulq()),
        (4, Sulq()),
        (3, ShiftedLog()),
        (4, ShiftedLog()),
    ],
)
def test_a_linear_layer(kind: Kind, bits: int, form: Format | None) -> None:
    layer, x = linear(bits, form)
    product = lower(nn.Sequential(layer))["0"]
    assert isinstance(product, LoweredLinear)
    assert product.encoding is not None
    if kind is OneDnnLinear and bits == 8 and not has_wide_sums():
        pytest.skip("this machine sums products of 8 bits in 16 bits")
    integer = kind(product, product.encoding, product.weight)
    torch.testing.assert_close(integer(x), layer(x), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(integer(x[0, 0]), layer(x[0, 0]), rtol=2e-6, atol=2e-6)


@pytest.mark.skipif(not has_onednn(), reason="no oneDNN here")
def test_a_convolution() -> None:
    x, conv = draws(2, 4, 9, 9), nn.Conv2d(4, 6, 3, stride=2, padding=1).requires_grad_(False)
    layer = QuantConv2d(conv, quantizer(x), quantizer(conv.weight, by=PerChannel(6, axis=-4), role=Role.WEIGHT))
    product = lower(nn.Sequential(layer))["0"]
    assert isinstance(product, LoweredConv2d)
    integer = OneDnnConv2d(product, product.encoding, product.weight)
    torch.testing.assert_close(integer(x), layer(x), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        (PerTensor(), PerTensor()),
        (PerChannel(3, axis=-3), PerTensor()),
        (PerChannel(7, axis=-2), PerChannel(9, axis=-1)),
    ],
)
def test_a_product_of_activations(bits: int, left: Granularity, right: Granularity) -> None:
    a, b = draws(2, 3, 7, 8), draws(2, 3, 8, 9, seed=1) + 0.5
    layer = QuantMatMul(quantizer(a, bits, by=left), quantizer(b, bits, by=right))
    product = lower(nn.Sequential(layer))["0"]
    assert isinstance(product, LoweredMatMul)
    torch.testing.assert_close(IntegerMatMul(product.left, product.right)(a, b), layer(a, b), rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("right_bits", [4, 8])
@pytest.mark.parametrize("worth", [0, 2**40])
def test_a_product_of_probabilities_with_a_shift(
    bits: int, right_bits: int, worth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "WORTH_A_CALL", worth)
    a, b = draws(2, 3, 7, 8).pow(4).softmax(dim=-1), draws(2, 3, 8, 9, seed=1)
    layer = QuantMatMul(quantizer(a, bits, Sulq()), quantizer(b, right_bits))
    product = lower(nn.Sequential(layer))["0"]
    assert isinstance(product, LoweredMatMul)
    torch.testing.assert_close(IntegerMatMul(product.left, product.right)(a, b), layer(a, b), rtol=5e-6, atol=2e-6)
