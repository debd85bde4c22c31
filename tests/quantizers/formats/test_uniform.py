"""The uniform format: ties, zero, the edges of its range, the gradient of its step, fractional zero points."""

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import Granularity, Quantizer
from isvit_lightning.search import Percentiles
from tests.helpers import GRANULARITIES, quantizer_of


def with_grid(
    bits: int, scale: torch.Tensor, zero_point: torch.Tensor, granularity: Granularity | None = None
) -> Quantizer:
    """A uniform quantizer in the precision of ``scale`` with this grid."""
    quantizer = quantizer_of(bits=bits, granularity=granularity).to(scale.dtype)
    quantizer.scale.copy_(scale)
    quantizer.zero_point.copy_(zero_point)
    quantizer.refresh()
    return quantizer


def test_ties_go_to_the_even_step() -> None:
    quantizer = with_grid(4, torch.tensor(1.0), torch.tensor(8.0))
    assert quantizer(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])).tolist() == [-2.0, 0.0, 0.0, 2.0, 2.0]


def test_zero_is_exact_wherever_the_zero_point_lies() -> None:
    for zero_point in range(16):
        quantizer = with_grid(4, torch.tensor(0.123), torch.tensor(float(zero_point)))
        assert quantizer(torch.zeros(1)).item() == 0.0
        assert quantizer.encode(torch.zeros(1)).item() == zero_point


def test_gradient_at_the_edges_of_the_range() -> None:
    quantizer = with_grid(2, torch.tensor(1.0), torch.tensor(1.0))
    tensor = torch.tensor([-1.6, -1.51, -1.49, 2.49, 2.51, 2.6], requires_grad=True)
    quantizer(tensor).sum().backward()
    assert tensor.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel_of_tokens"])
@pytest.mark.parametrize("zero_point", [1.3, 1.7])
def test_gradient_of_a_fractional_zero_point(granularity: str, zero_point: float) -> None:
    """Published arithmetic: a clamped element has no gradient, one inside has 1."""
    chosen, _ = GRANULARITIES[granularity]
    quantizer = with_grid(2, torch.ones(chosen.shape), torch.full(chosen.shape, zero_point), chosen)
    tensor = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).requires_grad_()
    quantizer(tensor).sum().backward()
    codes = tensor.detach() + zero_point
    assert tensor.grad.tolist() == ((codes >= 0) & (codes <= 3)).float().tolist()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("position", [0.0, 0.4, 1.0])
def test_gradient_of_the_step_size_against_pure_python(bits: int, position: float) -> None:
    """LSQ, equation 3: ``code - x / s`` inside the range, the outermost code beyond it."""
    scale, zero_point = 0.37, round(position * (2**bits - 1))
    low, high = -zero_point, 2**bits - 1 - zero_point
    quantizer = with_grid(bits, torch.tensor(scale, dtype=torch.float64), torch.tensor(float(zero_point)))
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
    quantizer = with_grid(2, torch.tensor(1.0), torch.tensor(0.0))
    quantizer.scale.requires_grad_(True)
    quantizer(torch.tensor([0.75, 9.0])).sum().backward()
    assert quantizer.scale.grad.item() == pytest.approx(1 - 0.75 + 3)


def test_fractional_zero_point_has_no_codes() -> None:
    quantizer = with_grid(4, torch.tensor(1.0), torch.tensor(2.5))
    with pytest.raises(IsvitError, match="round_zero_point"):
        quantizer.encode(torch.zeros(3))
    # Forward keeps the published arithmetic: codes 0 to 15 stand for -2.5 to 12.5.
    assert quantizer(torch.tensor([-9.0, -2.0, 0.0, 3.2, 99.0])).tolist() == [-2.5, -2.0, 0.0, 3.0, 12.5]


def test_copy_in_double_precision_keeps_the_grid() -> None:
    quantizer = quantizer_of()
    quantizer.calibrate(torch.randn(100))
    values = quantizer(torch.randn(50))
    assert torch.equal(quantizer.double()(values.double()).float(), values)


def test_search_is_handed_on() -> None:
    samples = torch.rand(1000) + 5
    inside, outside = quantizer_of(), quantizer_of(search=Percentiles(include_zero=False))
    inside.calibrate(samples)
    outside.calibrate(samples)
    assert inside.zero_point.item() == 0
    assert outside.zero_point.item() < 0
    assert (outside(samples) - samples).abs().mean() < (inside(samples) - samples).abs().mean() / 3
