"""What all quantizers share: bits, switch, what is held or kept, refusals, state."""

import copy
from dataclasses import dataclass

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import (
    Grid,
    Quantizer,
    Role,
    Search,
    Site,
    Spec,
)
from tests.helpers import GRANULARITIES, QUANTIZERS, quantizer_of, samples_for

BY_NAME = pytest.mark.parametrize("name", QUANTIZERS)


def build(name: str, bits: int = 4, granularity: str = "per_tensor") -> tuple[Quantizer, torch.Tensor]:
    """An uncalibrated quantizer and samples for it."""
    chosen, shape = GRANULARITIES[granularity]
    return QUANTIZERS[name](bits, chosen), samples_for(name, shape)


@BY_NAME
def test_switched_off_is_the_identity_even_uncalibrated(name: str) -> None:
    quantizer, samples = build(name)
    quantizer.enabled = False
    assert quantizer(samples) is samples


@BY_NAME
def test_uncalibrated_names_role_and_remedy(name: str) -> None:
    quantizer, samples = build(name)
    assert not quantizer.calibrated
    with pytest.raises(IsvitError, match=rf"{quantizer.role}.*before it was calibrated.*isvit fit"):
        quantizer(samples)


@BY_NAME
def test_one_that_was_loaded_is_not_calibrated_again(name: str) -> None:
    source, samples = build(name)
    source.calibrate(samples)
    loaded = Quantizer(source.spec)
    loaded.load_state_dict(source.state_dict())
    with pytest.raises(IsvitError, match=f"{source.role} quantizer was loaded, expected one with a search"):
        loaded.calibrate(samples / 2)
    assert torch.equal(loaded(samples), source(samples))


@BY_NAME
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_refused_samples_leave_the_grid_as_it_was(name: str, bad: float) -> None:
    quantizer, samples = build(name)
    quantizer.calibrate(samples)
    before = copy.deepcopy(quantizer.state_dict())
    spoiled = samples.clone()
    spoiled.view(-1)[3] = bad
    with pytest.raises(IsvitError, match="NaN or infinity"):
        quantizer.calibrate(spoiled)
    assert quantizer.calibrated
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


@BY_NAME
def test_deep_copy_is_calibrated_and_independent(name: str) -> None:
    quantizer, samples = build(name)
    quantizer.calibrate(samples)
    before = quantizer(samples)
    twin = copy.deepcopy(quantizer)
    quantizer.calibrate(samples * 0.1)
    assert torch.equal(twin(samples), before)


@BY_NAME
def test_what_is_held_is_returned_as_it_is(name: str) -> None:
    quantizer, samples = build(name)
    held = torch.randn(3)
    quantizer.held = held
    assert quantizer(samples) is held
    quantizer.enabled = False
    assert quantizer(samples) is samples
    quantizer.enabled, quantizer.held = True, None
    quantizer.calibrate(samples)
    assert torch.equal(quantizer(samples), quantizer.decode(quantizer.encode(samples)))


@BY_NAME
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_is_kept_passes_unquantized_with_its_gradient(name: str, granularity: str) -> None:
    quantizer, samples = build(name, granularity=granularity)
    quantizer.calibrate(samples)
    tensor = samples.clone().requires_grad_()
    quantized = quantizer(tensor)
    (slope,) = torch.autograd.grad(quantized.sum(), tensor)
    kept = torch.arange(samples.numel()).view(samples.shape) % 3 == 0
    quantizer.kept = kept.float()
    values = quantizer(tensor)
    values.sum().backward()
    assert torch.equal(values, torch.where(kept, samples, quantized))
    assert torch.equal(tensor.grad, torch.where(kept, torch.ones(()), slope))


def test_neither_what_is_held_nor_what_is_kept_is_state() -> None:
    quantizer = quantizer_of()
    names = set(quantizer.state_dict())
    quantizer.held = quantizer.kept = torch.ones(2)
    assert set(quantizer.state_dict()) == names == {"scale", "zero_point"}


def test_the_grid_is_chosen_by_the_search_from_the_site() -> None:
    seen: list[tuple[Spec, Site]] = []

    @dataclass(frozen=True)
    class Fixed(Search):
        def choose(self, spec: Spec, site: Site) -> Grid:
            seen.append((spec, site))
            return torch.tensor(0.5), torch.tensor(3.0)

    quantizer = quantizer_of(search=Fixed())
    site = Site(torch.rand(5), operand="weight", gradients=torch.rand(5))
    quantizer.calibrate(site)
    quantizer.calibrate(site.samples)
    assert seen[0] == (quantizer.spec, site)
    assert seen[1][1].samples is site.samples
    assert (seen[1][1].layer, seen[1][1].partner, seen[1][1].gradients) == (None, None, None)
    assert [number.item() for number in quantizer.grid] == [0.5, 3.0]
    assert quantizer(torch.tensor([-9.0, 0.7])).tolist() == [-1.5, 0.5]


def test_a_grid_of_too_few_numbers_is_an_error() -> None:
    class Short(Search):
        def choose(self, spec: Spec, site: Site) -> Grid:
            return (torch.tensor(0.5),)

    quantizer = quantizer_of(search=Short())
    with pytest.raises(ValueError, match="shorter"):
        quantizer.calibrate(torch.rand(5))


@BY_NAME
def test_loading_an_uncalibrated_state_makes_uncalibrated(name: str) -> None:
    quantizer, samples = build(name)
    empty = copy.deepcopy(quantizer.state_dict())
    quantizer.calibrate(samples)
    quantizer.load_state_dict(empty)
    with pytest.raises(IsvitError, match="before it was calibrated"):
        quantizer(samples)


def test_refresh_follows_a_change_from_outside() -> None:
    quantizer = quantizer_of()
    quantizer.scale.fill_(0.5)
    quantizer.zero_point.fill_(4.0)
    assert not quantizer.calibrated
    quantizer.refresh()
    assert quantizer.calibrated
    assert quantizer(torch.tensor([-9.0, 0.2, 0.3, 9.0])).tolist() == [-2.0, 0.0, 0.5, 5.5]


def test_repr_tells_role_bits_codes_and_granularity() -> None:
    quantizer = quantizer_of(bits=3, role=Role.GELU_OUT)
    assert "gelu_out, Uniform(), 3 bits, 8 codes, per tensor" in repr(quantizer)


@BY_NAME
def test_calibration_is_deterministic(name: str) -> None:
    first, samples = build(name)
    second, _ = build(name)
    first.calibrate(samples)
    second.calibrate(samples)
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


@BY_NAME
def test_batch_size_may_change_between_calibration_and_use(name: str) -> None:
    quantizer, samples = build(name, granularity="per_channel_of_tokens")
    quantizer.calibrate(samples)
    assert torch.equal(quantizer(samples[:1]), quantizer(samples)[:1])
    assert quantizer(samples[0, 0]).shape == (5,)


@BY_NAME
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_quantized_in_float32(name: str, granularity: str, dtype: torch.dtype) -> None:
    quantizer, samples = build(name, granularity=granularity)
    half = samples.to(dtype).requires_grad_(True)
    quantizer.calibrate(half)
    grids = [buffer.clone() for buffer in quantizer.buffers()]
    got = quantizer(half)
    got.sum().backward()
    quantizer.calibrate(half.detach().float())
    assert all(torch.equal(*pair) for pair in zip(grids, quantizer.buffers(), strict=True))
    assert got.dtype is torch.float32
    assert torch.equal(got, quantizer(half.detach().float()))
    assert half.grad is not None
    assert half.grad.dtype is dtype
    codes = quantizer.encode(half.detach())
    if "published" not in name:
        assert torch.equal(quantizer.decode(codes), got)
    assert torch.equal(codes, quantizer.encode(half.detach().float()))


@BY_NAME
def test_a_quantizer_in_half_precision_computes_in_it(name: str) -> None:
    quantizer, samples = build(name)
    quantizer.calibrate(samples)
    assert quantizer.bfloat16()(samples.bfloat16()).dtype is torch.bfloat16
