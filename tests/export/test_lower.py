"""Each product of a network in integers, against the layer that it stands for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isvit_lightning.export.lower import LoweredConv2d, LoweredLinear, LoweredMatMul, float_products, lower
from isvit_lightning.export.operands import Affine, Steps
from isvit_lightning.layers import QuantConv2d, QuantLinear, QuantMatMul
from isvit_lightning.quantizers import (
    Format,
    Granularity,
    Log,
    PerChannel,
    PerTensor,
    Quantizer,
    Role,
    Spec,
    Sulq,
    Uniform,
)
from isvit_lightning.search import Percentiles

TENSOR = PerTensor()


def quantizer(
    samples: torch.Tensor,
    bits: int = 4,
    form: Format | None = None,
    by: Granularity = TENSOR,
    role: Role = Role.OTHER,
) -> Quantizer:
    form = form or Uniform()
    made = Quantizer(Spec(form, bits, by, role), Percentiles(**form.usual_search))
    made.calibrate(samples)
    return made


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(bits: int, form: Format | None = None, by: Granularity = TENSOR) -> tuple[QuantLinear, torch.Tensor]:
    x = draws(2, 7, 12)
    x = x if form is None else x.abs()
    layer = nn.Linear(12, 5).requires_grad_(False)
    weight = quantizer(layer.weight, bits, by=PerChannel(5, axis=-2), role=Role.WEIGHT)
    return QuantLinear(layer, quantizer(x, bits, form, by), weight), x


@pytest.mark.parametrize("bits", [3, 4, 7, 8])
def test_a_linear_layer_is_a_sum_of_products_of_integers(bits: int) -> None:
    layer, x = linear(bits)
    product = lower(nn.Sequential(layer))["0"]
    assert isinstance(product, LoweredLinear)
    assert product.reason is None
    weight, encoding = product.weight, product.encoding
    assert weight is not None
    assert isinstance(encoding, Affine)
    assert weight.integers.dtype == torch.int8
    assert bool((weight.zero_point == 0).all()) == (bits < 8)
    assert torch.equal(weight.values(), product.values)
    codes = layer.input_quantizer.encode(x).double() - encoding.zero_point.double()
    sums = codes @ (weight.integers.double() - weight.zero_point.double().view(-1, 1)).T
    assert torch.equal(sums, sums.round())
    expected = encoding.scale.double() * weight.scale.double() * sums + product.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_shift_of_a_format_is_folded_into_the_bias() -> None:
    layer, x = linear(4, Sulq())
    product = lower(nn.Sequential(layer))["0"]
    assert isinstance(product, LoweredLinear)
    assert isinstance(product.encoding, Steps)
    index = torch.bucketize(x, product.encoding.thresholds, right=True)
    expected = product.bias.double() + sum(
        part.unit * part.integers[index].double() @ product.values.double().T for part in product.encoding.parts
    )
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "by", "reason"), [(Log(2), TENSOR, "no integers"), (None, PerChannel(12), "one scale")]
)
def test_a_product_that_is_no_sum_of_integers_says_why(form: Format | None, by: Granularity, reason: str) -> None:
    layer, _ = linear(4, form, by)
    product = lower(nn.Sequential(layer))
    assert reason in float_products(product)["0"]


def test_a_float_operand_says_so() -> None:
    layer = QuantLinear(nn.Linear(3, 2).requires_grad_(False), None, None)
    assert float_products(lower(nn.Sequential(layer))) == {"0": "its input is float"}


def test_a_quantizer_that_is_switched_off_leaves_its_operand_float() -> None:
    layer, _ = linear(4)
    layer.input_quantizer.enabled = False
    assert float_products(lower(nn.Sequential(layer))) == {"0": "its input is float"}


def test_a_convolution_keeps_its_geometry() -> None:
    x, conv = draws(2, 4, 9, 9), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2).requires_grad_(False)
    weight = quantizer(conv.weight, by=PerChannel(6, axis=-4), role=Role.WEIGHT)
    layer = QuantConv2d(conv, quantizer(x), weight)
    product = lower(nn.Sequential(layer))["0"]
    assert isinstance(product, LoweredConv2d)
    assert product.reason is None
    assert product.weight is not None
    assert isinstance(product.encoding, Affine)
    codes = layer.input_quantizer.encode(x).double() - product.encoding.zero_point
    geometry = (product.stride, product.padding, product.dilation, product.groups)
    sums = F.conv2d(codes, product.weight.integers.double(), None, *geometry)
    factor = product.encoding.scale.double() * product.weight.scale.double()
    expected = sums * factor.view(-1, 1, 1) + product.bias.double().view(-1, 1, 1)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        (TENSOR, TENSOR, None),
        (PerChannel(3, axis=-3), PerChannel(3, axis=-3), None),
        (PerChannel(7, axis=-2), PerChannel(9, axis=-1), None),
        (PerChannel(8, axis=-1), TENSOR, "left operand changes along the sum"),
        (TENSOR, PerChannel(8, axis=-2), "right operand changes along the sum"),
    ],
)
def test_a_scale_may_vary_along_all_axes_but_that_of_the_sum(
    left: Granularity, right: Granularity, reason: str | None
) -> None:
    a, b = draws(2, 3, 7, 8), draws(2, 3, 8, 9)
    layer = QuantMatMul(quantizer(a, by=left), quantizer(b, by=right))
    product = lower(nn.Sequential(layer))["0"]
    assert isinstance(product, LoweredMatMul)
    assert product.reason is None if reason is None else reason in str(product.reason)
    if reason is None:
        codes = [
            operand.encode(x) - operand.grid[1]
            for operand, x in ((layer.left_quantizer, a), (layer.right_quantizer, b))
        ]
        expected = (codes[0].double() @ codes[1].double()) * (product.left.scale * product.right.scale).double()
        torch.testing.assert_close(layer(a, b).double(), expected, rtol=1e-5, atol=1e-5)
