"""Uniform quantizer against pure Python and closed forms."""

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import PerChannel, RangeSearch, UniformQuantizer
from tests.helpers import GRANULARITIES


def with_grid(quantizer: UniformQuantizer, scale: torch.Tensor, zero_point: torch.Tensor) -> UniformQuantizer:
    """``quantizer`` in the precision of ``scale`` with this grid."""
    quantizer.to(scale.dtype)
    quantizer.scale.copy_(scale)
    quantizer.zero_point.copy_(zero_point)
    quantizer.refresh()
    return quantizer


def slow_code(value: float, scale: float, zero_point: int, bits: int) -> int:
    """Equation 7 in pure Python; ``round`` is half to even, as torch's."""
    return min(max(round(value / scale) + zero_point, 0), 2**bits - 1)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("position", [0.0, 0.3, 1.0])
def test_per_tensor_against_pure_python(bits: int, position: float) -> None:
    scale, zero_point = 0.37, round(position * (2**bits - 1))
    quantizer = with_grid(
        UniformQuantizer(bits), torch.tensor(scale, dtype=torch.float64), torch.tensor(float(zero_point))
    )
    values = torch.linspace(-1.2, 1.2, 501, dtype=torch.float64) * scale * 2**bits
    codes = [slow_code(value, scale, zero_point, bits) for value in values.tolist()]
    assert quantizer.encode(values).tolist() == codes
    expected = torch.tensor([(code - zero_point) * scale for code in codes], dtype=torch.float64)
    torch.testing.assert_close(quantizer(values), expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(quantizer.decode(torch.tensor(codes)), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", [name for name in GRANULARITIES if name != "per_tensor"])
def test_per_channel_against_one_quantizer_for_each_channel(name: str) -> None:
    granularity, shape = GRANULARITIES[name]
    assert isinstance(granularity, PerChannel)
    scale = torch.rand(granularity.shape) + 0.1
    zero_point = torch.randint(0, 16, granularity.shape).float()
    quantizer = with_grid(UniformQuantizer(4, granularity), scale, zero_point)
    tensor = torch.randn(shape) * 3
    codes, values = quantizer.encode(tensor), quantizer(tensor)
    for index in range(granularity.size):
        single = with_grid(UniformQuantizer(4), scale.flatten()[index], zero_point.flatten()[index])
        part = tensor.select(granularity.axis, index)
        assert torch.equal(codes.select(granularity.axis, index), single.encode(part))
        assert torch.equal(values.select(granularity.axis, index), single(part))


def test_ties_go_to_the_even_step() -> None:
    quantizer = with_grid(UniformQuantizer(4), torch.tensor(1.0), torch.tensor(8.0))
    assert quantizer(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])).tolist() == [-2.0, 0.0, 0.0, 2.0, 2.0]


def test_zero_is_exact_wherever_the_zero_point_lies() -> None:
    for zero_point in range(16):
        quantizer = with_grid(UniformQuantizer(4), torch.tensor(0.123), torch.tensor(float(zero_point)))
        assert quantizer(torch.zeros(1)).item() == 0.0
        assert quantizer.encode(torch.zeros(1)).item() == zero_point


def test_grid_has_one_value_for_each_code() -> None:
    for bits in range(2, 9):
        quantizer = with_grid(UniformQuantizer(bits), torch.tensor(0.25), torch.tensor(1.0))
        grid = quantizer.decode(torch.arange(2**bits))
        assert grid.tolist() == [0.25 * (code - 1) for code in range(2**bits)]
        assert torch.equal(quantizer(torch.linspace(-1, 0.25 * 2**bits, 5000)).unique(), grid)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel_of_tokens", "per_filter_of_conv_weight"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradient_is_one_inside_and_zero_outside(granularity: str, bits: int) -> None:
    chosen, shape = GRANULARITIES[granularity]
    scale = torch.rand(chosen.shape, dtype=torch.float64) + 0.1
    zero_point = torch.randint(0, 2**bits, chosen.shape).double()
    quantizer = with_grid(UniformQuantizer(bits, chosen), scale, zero_point)
    tensor = (torch.randn(shape, dtype=torch.float64) * 2**bits * 0.4).requires_grad_()
    incoming = torch.randn(shape, dtype=torch.float64)
    quantizer(tensor).backward(incoming)
    codes = (tensor / scale).round() + zero_point
    inside = (codes >= 0) & (codes <= 2**bits - 1)
    assert inside.any()
    assert not inside.all()
    assert torch.equal(tensor.grad, incoming * inside)


def test_gradient_at_the_edges_of_the_range() -> None:
    quantizer = with_grid(UniformQuantizer(2), torch.tensor(1.0), torch.tensor(1.0))
    tensor = torch.tensor([-1.6, -1.51, -1.49, 2.49, 2.51, 2.6], requires_grad=True)
    quantizer(tensor).sum().backward()
    assert tensor.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel_of_tokens"])
@pytest.mark.parametrize("zero_point", [1.3, 1.7])
def test_gradient_of_a_fractional_zero_point(granularity: str, zero_point: float) -> None:
    """Published arithmetic: a clamped element has no gradient, one inside has 1."""
    chosen, _ = GRANULARITIES[granularity]
    quantizer = with_grid(UniformQuantizer(2, chosen), torch.ones(chosen.shape), torch.full(chosen.shape, zero_point))
    tensor = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).requires_grad_()
    quantizer(tensor).sum().backward()
    codes = tensor.detach() + zero_point
    assert tensor.grad.tolist() == ((codes >= 0) & (codes <= 3)).float().tolist()


def test_gradient_does_not_reach_the_grid_unless_asked_to() -> None:
    for granularity in ("per_tensor", "per_channel_of_tokens"):
        chosen, shape = GRANULARITIES[granularity]
        quantizer = UniformQuantizer(4, chosen)
        quantizer.calibrate(torch.randn(shape))
        quantizer(torch.randn(shape).requires_grad_()).sum().backward()
        assert quantizer.scale.grad is None
        assert quantizer.zero_point.grad is None


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("position", [0.0, 0.4, 1.0])
def test_gradient_of_the_step_size_against_pure_python(bits: int, position: float) -> None:
    """LSQ, equation 3: ``code - x / s`` inside the range, the outermost code beyond it."""
    scale, zero_point = 0.37, round(position * (2**bits - 1))
    low, high = -zero_point, 2**bits - 1 - zero_point
    quantizer = with_grid(
        UniformQuantizer(bits), torch.tensor(scale, dtype=torch.float64), torch.tensor(float(zero_point))
    )
    quantizer.scale.requires_grad_(True)
    tensor = (torch.randn(300, dtype=torch.float64) * scale * 2**bits * 0.6).requires_grad_()
    incoming = torch.randn(300, dtype=torch.float64)
    quantizer(tensor).backward(incoming)
    expected, inside = 0.0, []
    for x, upstream in zip(tensor.tolist(), incoming.tolist(), strict=True):
        step = round(x / scale)
        inside.append(low <= step <= high)
        expected += upstream * (step - x / scale if inside[-1] else min(max(step, low), high))
    assert quantizer.scale.grad.item() == pytest.approx(expected, rel=1e-9)
    assert torch.equal(tensor.grad, incoming * torch.tensor(inside))


def test_step_size_is_learned_while_the_tensor_is_fixed() -> None:
    quantizer = with_grid(UniformQuantizer(2), torch.tensor(1.0), torch.tensor(0.0))
    quantizer.scale.requires_grad_(True)
    quantizer(torch.tensor([0.75, 9.0])).sum().backward()
    assert quantizer.scale.grad.item() == pytest.approx(1 - 0.75 + 3)


def test_fractional_zero_point_has_no_codes() -> None:
    quantizer = with_grid(UniformQuantizer(4), torch.tensor(1.0), torch.tensor(2.5))
    with pytest.raises(IsvitError, match="round_zero_point"):
        quantizer.encode(torch.zeros(3))
    # Forward keeps the published arithmetic: codes 0 to 15 stand for -2.5 to 12.5.
    assert quantizer(torch.tensor([-9.0, -2.0, 0.0, 3.2, 99.0])).tolist() == [-2.5, -2.0, 0.0, 3.0, 12.5]


def test_loaded_per_tensor_grid_is_used_by_forward() -> None:
    source, target = UniformQuantizer(4), UniformQuantizer(4)
    source.calibrate(torch.rand(100))
    target.calibrate(-torch.rand(100))
    target.load_state_dict(source.state_dict())
    tensor = torch.randn(50)
    assert torch.equal(target(tensor), source(tensor))


def test_copy_in_double_precision_keeps_the_grid() -> None:
    quantizer = UniformQuantizer(4)
    quantizer.calibrate(torch.randn(100))
    values = quantizer(torch.randn(50))
    assert torch.equal(quantizer.double()(values.double()).float(), values)


def test_search_is_handed_on() -> None:
    samples = torch.rand(1000) + 5
    inside, outside = UniformQuantizer(4), UniformQuantizer(4, search=RangeSearch(include_zero=False))
    inside.calibrate(samples)
    outside.calibrate(samples)
    assert inside.zero_point.item() == 0
    assert outside.zero_point.item() < 0
    assert (outside(samples) - samples).abs().mean() < (inside(samples) - samples).abs().mean() / 3


def test_non_contiguous_tensor() -> None:
    quantizer = UniformQuantizer(4, PerChannel(5))
    tensor = torch.randn(5, 7).T
    quantizer.calibrate(tensor)
    assert torch.equal(quantizer(tensor), quantizer(tensor.contiguous()))
    assert torch.equal(quantizer.encode(tensor), quantizer.encode(tensor.contiguous()))


def test_input_is_not_changed() -> None:
    quantizer = UniformQuantizer(4, PerChannel(5))
    tensor = torch.randn(7, 5)
    before = tensor.clone()
    quantizer.calibrate(tensor)
    quantizer(tensor)
    quantizer.encode(tensor)
    assert torch.equal(tensor, before)
