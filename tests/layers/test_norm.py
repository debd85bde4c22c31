"""QuantLayerNorm against the same arithmetic written out."""

import pytest
import torch
from torch import nn

from isvit_lightning.layers import QuantLayerNorm
from isvit_lightning.quantizers import PerChannel, Role
from tests.helpers import quantizer_of


def build(affine: bool = True, eps: float = 1e-3) -> tuple[nn.LayerNorm, QuantLayerNorm]:
    """A float norm of 6 channels and its quantized form, calibrated by channel."""
    norm = nn.LayerNorm(6, eps=eps, elementwise_affine=affine)
    if affine:
        norm.weight.data.copy_(torch.randn(6).exp())
        norm.bias.data.copy_(torch.randn(6))
    layer = QuantLayerNorm(norm, quantizer_of(None, 3, PerChannel(6), Role.NORM_IN))
    layer.input_quantizer.calibrate(torch.randn(50, 6) + 0.5)
    return norm, layer


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (2, 3, 4, 6)])
def test_output_is_the_norm_of_grid_values(affine: bool, shape: tuple[int, ...]) -> None:
    norm, layer = build(affine)
    tensor = torch.randn(shape)
    quantizer = layer.input_quantizer
    rounded = quantizer.decode(quantizer.encode(tensor))
    expected = nn.functional.layer_norm(rounded, (6,), norm.weight, norm.bias, 1e-3)
    assert torch.equal(layer(tensor), expected)
    assert not torch.allclose(layer(tensor), norm(tensor))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_switched_off_is_the_float_layer(affine: bool, eps: float) -> None:
    norm, layer = build(affine, eps)
    layer.input_quantizer.enabled = False
    tensor = torch.randn(2, 5, 6)
    assert torch.equal(layer(tensor), norm(tensor))


def test_parameters_are_taken_over_and_named_as_before() -> None:
    norm, layer = build()
    assert layer.weight is norm.weight
    assert layer.bias is norm.bias
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert set(norm.state_dict()) <= set(layer.state_dict())


def test_it_is_a_layer_norm_for_those_who_fold_into_it() -> None:
    norm, layer = build()
    assert isinstance(layer, nn.LayerNorm)
    assert (layer.normalized_shape, layer.eps, layer.elementwise_affine) == (norm.normalized_shape, norm.eps, True)
    assert repr(layer).startswith("QuantLayerNorm(\n  (6,), eps=0.001, elementwise_affine=True")


def test_gradients_of_input_weight_and_bias() -> None:
    norm, layer = build()
    tensor = (torch.randn(9, 6) * 0.3).requires_grad_()
    incoming = torch.randn(9, 6)
    layer(tensor).backward(incoming)
    rounded = layer.input_quantizer(tensor).detach().requires_grad_()
    bias, weight = layer.bias.grad.clone(), layer.weight.grad.clone()
    norm.zero_grad()
    norm(rounded).backward(incoming)
    assert torch.equal(norm.bias.grad, bias)
    assert torch.equal(norm.weight.grad, weight)
    codes = layer.input_quantizer.format.codes(tensor.detach(), layer.input_quantizer.grid)
    inside = (codes >= 0) & (codes <= 7)
    assert bool(inside.any())
    torch.testing.assert_close(tensor.grad, rounded.grad * inside)
