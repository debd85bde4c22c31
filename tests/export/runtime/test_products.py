"""Products of integers, against products of whole numbers in float64."""

import pytest
import torch
import torch.nn.functional as F

from isvit_lightning.export.runtime import products
from isvit_lightning.export.runtime.products import conv2d, has_onednn, has_wide_sums, int_mm, linear, matmul

onednn = pytest.mark.skipif(not has_onednn(), reason="this machine has no oneDNN for integers")


def int8(*shape: int, bits: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, generator=generator, dtype=torch.int8)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7, 4), (1, 2, 100, 64, 100), (3, 2, 197, 64, 197)])
def test_a_matrix_product_is_exact_by_either_way(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    *lead, n, k, m = shape
    a, b = int8(*lead, n, k, bits=4), int8(*lead, k, m, bits=4, seed=1)
    expected = a.double() @ b.double()
    for worth in (0, 2**40):
        monkeypatch.setattr(products, "WORTH_A_CALL", worth)
        assert torch.equal(matmul(a, b).double(), expected)
        assert torch.equal(matmul(a, b.mT.contiguous().mT).double(), expected)


@pytest.mark.skipif(not has_wide_sums(), reason="this machine sums products of 8 bits in 16 bits")
def test_integers_of_all_8_bits_do_not_overflow() -> None:
    a, b = torch.full((1, 64, 512), -128, dtype=torch.int8), torch.full((1, 512, 64), -128, dtype=torch.int8)
    assert torch.equal(matmul(a, b), torch.full((1, 64, 64), 512 * 128 * 128, dtype=torch.int32))


@onednn
@pytest.mark.parametrize("zero_point", [0, 7])
@pytest.mark.parametrize("lead", [(1,), (5,), (2, 7), (1, 3, 4)])
def test_a_linear_layer(zero_point: int, lead: tuple[int, ...]) -> None:
    codes = torch.randint(0, 16, (*lead, 24), dtype=torch.uint8)
    weight, scale, bias = int8(10, 24, bits=4), torch.rand(10) + 0.1, torch.randn(10)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    sums = (codes.double() - zero_point) @ weight.double().T
    expected = (sums * scale + bias).float()
    torch.testing.assert_close(linear(codes, packed, scale, zero_point, bias), expected, rtol=1e-6, atol=1e-6)


@onednn
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_convolution_pads_with_the_code_of_zero(groups: int, channels_last: bool) -> None:
    codes = torch.randint(0, 16, (2, 4, 9, 8), dtype=torch.uint8)
    codes = codes.to(memory_format=torch.channels_last) if channels_last else codes
    weight, scale, bias = int8(6, 4 // groups, 3, 3, bits=4), torch.rand(6) + 0.1, torch.randn(6)
    geometry = ([2, 1], [1, 1], [1, 1], groups)
    packed = torch.ops.onednn.qconv_prepack(weight, torch.ones(6), 1.0, 5, *geometry, None)
    sums = F.conv2d(codes.double() - 5, weight.double(), None, *geometry)
    expected = (sums * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)).float()
    torch.testing.assert_close(conv2d(codes, packed, scale, 5, bias, *geometry), expected, rtol=1e-6, atol=1e-6)


def test_a_product_of_two_matrices() -> None:
    a, b = int8(3, 5, bits=5), int8(5, 2, bits=5, seed=1)
    assert torch.equal(int_mm(a, b).double(), a.double() @ b.double())
