"""Quantizers of whatever numbers float32 holds: denormal, huge, constant, of any shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import PerChannel, PerTensor, Quantizer, Uniform
from tests.helpers import PROBABILITIES, QUANTIZERS

LARGEST = 3.4e38


@st.composite
def extremes(draw: st.DrawFn) -> tuple[str, Quantizer, torch.Tensor]:
    """A quantizer that is not calibrated yet, and a tensor of one magnitude or of several at once."""
    name, bits = draw(st.sampled_from(sorted(QUANTIZERS))), draw(st.integers(2, 8))
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    values = torch.randn(rows, columns, generator=generator)
    exponents = draw(st.lists(st.integers(-45, 38), min_size=1, max_size=3))
    chosen = torch.randint(len(exponents), values.shape, generator=generator)
    scaled = values.double() * torch.tensor([10.0**k for k in exponents], dtype=torch.float64)[chosen]
    tensor = scaled.clamp(-LARGEST, LARGEST).float()
    match draw(st.sampled_from(["random", "constant", "one_sided", "sparse"])):
        case "constant":
            tensor = tensor[:1, :1].expand(rows, columns).contiguous()
        case "one_sided":
            tensor = tensor.abs() * draw(st.sampled_from([1, -1]))
        case "sparse":
            tensor = tensor * (chosen == 0) * (torch.arange(columns) % 2)
    if name in PROBABILITIES:
        tensor = tensor.abs()
    granularity = draw(st.sampled_from([PerTensor(), PerChannel(columns), PerChannel(rows, axis=-2)]))
    return name, QUANTIZERS[name](bits, granularity), tensor


@given(extremes())
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
def test_every_finite_tensor_has_a_finite_grid_or_a_sentence(drawn: tuple[str, Quantizer, torch.Tensor]) -> None:
    _, quantizer, tensor = drawn
    try:
        quantizer.calibrate(tensor)
    except IsvitError as error:
        assert ", expected " in str(error)
        assert not quantizer.calibrated
        return
    assert quantizer.calibrated
    codes, values = quantizer.encode(tensor), quantizer(tensor)
    assert bool(values.isfinite().all())
    assert 0 <= int(codes.min()) <= int(codes.max()) < quantizer.n_codes
    assert torch.equal(quantizer.decode(codes), values)
    assert torch.equal(quantizer(values), values)
    if isinstance(quantizer.format, Uniform) and quantizer.search.include_zero:
        assert torch.equal(quantizer.zero_point, quantizer.zero_point.round())
        assert 0 <= float(quantizer.zero_point.min()) <= float(quantizer.zero_point.max()) <= quantizer.n_codes - 1
        assert bool((quantizer.scale > 0).all())


@given(extremes())
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_gradients_of_every_finite_tensor_are_numbers(drawn: tuple[str, Quantizer, torch.Tensor]) -> None:
    _, quantizer, tensor = drawn
    try:
        quantizer.calibrate(tensor)
    except IsvitError:
        return
    tensor.requires_grad_()
    quantizer(tensor).sum().backward()
    assert tensor.grad is not None
    assert not bool(tensor.grad.isnan().any())


@pytest.mark.parametrize("value", [1e-45, 1e-38, 3e38])
@pytest.mark.parametrize("name", ["uniform", "sulq", "log2"])
def test_the_ends_of_float32_are_calibrated(name: str, value: float) -> None:
    quantizer = QUANTIZERS[name](4, PerTensor())
    quantizer.calibrate(torch.full((8,), value))
    assert bool(quantizer(torch.full((8,), value)).isfinite().all())
