"""QuantMatMul against the same arithmetic written out."""

import pytest
import torch

from isvit_lightning.layers import QuantMatMul
from isvit_lightning.quantizers import Role, Sulq
from tests.helpers import quantizer_of


def build() -> tuple[QuantMatMul, torch.Tensor, torch.Tensor]:
    """Probabilities times values, calibrated."""
    probabilities, values = torch.randn(2, 3, 5, 5).softmax(dim=-1), torch.randn(2, 3, 5, 4)
    product = QuantMatMul(quantizer_of(Sulq()), quantizer_of(role=Role.VALUE))
    product.left_quantizer.calibrate(probabilities)
    product.right_quantizer.calibrate(values)
    return product, probabilities, values


def test_output_is_the_product_of_grid_values() -> None:
    product, a, b = build()
    left, right = product.left_quantizer, product.right_quantizer
    expected = torch.matmul(left.decode(left.encode(a)), right.decode(right.encode(b)))
    assert torch.equal(product(a, b), expected)


def test_each_side_is_switched_alone() -> None:
    product, a, b = build()
    product.left_quantizer.enabled = False
    assert torch.equal(product(a, b), a @ product.right_quantizer(b))
    product.right_quantizer.enabled = False
    assert torch.equal(product(a, b), a @ b)


def test_gradient_reaches_both_sides() -> None:
    product, a, b = build()
    product(a.requires_grad_(), b.requires_grad_()).sum().backward()
    assert a.grad.count_nonzero() > 0
    assert b.grad.count_nonzero() > 0


def test_transposed_operand() -> None:
    product, _, b = build()
    product.left_quantizer.enabled = False
    keys = b.transpose(-2, -1)
    product.right_quantizer.calibrate(keys)
    assert torch.equal(product(b, keys), b @ product.right_quantizer(keys.contiguous()))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_a_side_without_quantizer_stays_float(left: bool, right: bool) -> None:
    full, a, b = build()
    product = QuantMatMul(full.left_quantizer if left else None, full.right_quantizer if right else None)
    expected = (full.left_quantizer(a) if left else a) @ (full.right_quantizer(b) if right else b)
    assert torch.equal(product(a, b), expected)


def test_product_keeps_left_and_right_apart() -> None:
    product, a, b = build()
    assert torch.equal(product.product("left", a, b), a @ b)
    assert torch.equal(product.product("right", b, a), a @ b)
    assert not product.channels_last
