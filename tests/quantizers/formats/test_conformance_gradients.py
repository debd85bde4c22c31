"""The gradients of every number format."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import GRANULARITIES
from tests.quantizers.formats.cases import CASES, EVERY, FEW, calibrated, drawn_with, slow_of


@EVERY
@given(data=st.data())
@FEW
def test_gradient_is_the_slope_inside_and_zero_outside(name: str, data: st.DataObject) -> None:
    quantizer, tensor = data.draw(drawn_with(name))
    form, tensor = quantizer.double().format, tensor.double().requires_grad_()
    incoming = torch.linspace(-1, 2, tensor.numel(), dtype=torch.float64).view(tensor.shape)
    values = quantizer(tensor)
    values.backward(incoming)
    x = tensor.detach()
    codes = form.codes(x, quantizer.grid)
    inside = (codes >= 0) & (codes <= quantizer.n_codes - 1)
    base = form.base(codes.clamp(0, quantizer.n_codes - 1), quantizer.grid)
    slope = form.slope(x.clone(), base, quantizer.grid)
    expected = torch.where(inside, slope * incoming, torch.zeros_like(x))
    torch.testing.assert_close(tensor.grad, expected, rtol=1e-9, atol=1e-12)


@EVERY
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel_of_tokens"])
def test_gradient_has_its_closed_form(name: str, bits: int, granularity: str) -> None:
    """1 for a uniform grid, ``(x̂ + shift) / (x + shift)`` for a logarithmic one."""
    case, (chosen, _) = CASES[name], GRANULARITIES[granularity]
    samples = case.samples(torch.randn(40, 5, dtype=torch.float64) + 0.3)
    quantizer = case.quantizer(bits, chosen).double()
    quantizer.calibrate(samples)
    # A range that both ends leave.
    low, high = samples.quantile(0.2), samples.quantile(0.8)
    quantizer.calibrate(samples.clamp(low, high))
    tensor = torch.cat([samples, samples * 1.5]).requires_grad_()
    incoming = torch.randn(tensor.shape, dtype=torch.float64)
    values = quantizer(tensor)
    values.backward(incoming)
    counts = [0, 0]
    for row in range(tensor.shape[0]):
        for column in range(5):
            slow = slow_of(name, quantizer, 0 if granularity == "per_tensor" else column)
            x, value = tensor[row, column].item(), values[row, column].item()
            inside = 0 <= slow.code(x) <= quantizer.n_codes - 1
            expected = incoming[row, column].item() * slow.slope(x, value) if inside else 0.0
            assert tensor.grad[row, column].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
            counts[inside] += 1
    assert min(counts) > 10


@EVERY
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel_of_tokens"])
def test_the_grid_has_gradients_where_it_is_learned_and_only_if_asked(name: str, granularity: str) -> None:
    quantizer, samples = calibrated(name, 4, granularity)
    learned = quantizer.format.learned(quantizer.granularity)
    assert set(learned) <= set(quantizer.format.numbers)
    quantizer(samples.clone().requires_grad_()).sum().backward()
    assert all(number.grad is None for number in quantizer.grid)
    for number in quantizer.grid:
        number.requires_grad_()
    quantizer(samples.clone().requires_grad_()).sum().backward()
    found = {key for key in quantizer.format.numbers if quantizer.get_buffer(key).grad is not None}
    assert found == set(learned)
    assert all(bool(quantizer.get_buffer(key).grad.isfinite().all()) for key in learned)
