"""What all quantizers share: bits, switch, freezing, refusals, state."""

import copy
import inspect

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import PerTensor, Quantizer, Role, UniformQuantizer
from tests.helpers import GRANULARITIES, QUANTIZERS, samples_for

BY_NAME = pytest.mark.parametrize("name", QUANTIZERS)


def build(name: str, bits: int = 4, granularity: str = "per_tensor") -> tuple[Quantizer, torch.Tensor]:
    """An uncalibrated quantizer and samples for it."""
    chosen, shape = GRANULARITIES[granularity]
    return QUANTIZERS[name](bits, chosen), samples_for(name, shape)


def test_base_is_abstract() -> None:
    assert inspect.isabstract(Quantizer)


@BY_NAME
@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 32])
def test_bits_out_of_range_are_refused(name: str, bits: int) -> None:
    with pytest.raises(IsvitError, match=f"between 2 and 8, got {bits}.*model.bits"):
        QUANTIZERS[name](bits, PerTensor())


@BY_NAME
def test_switched_off_is_the_identity_even_uncalibrated(name: str) -> None:
    quantizer, samples = build(name)
    quantizer.enabled = False
    assert quantizer(samples) is samples


@BY_NAME
def test_uncalibrated_names_role_and_remedy(name: str) -> None:
    quantizer, samples = build(name)
    assert not quantizer.calibrated
    with pytest.raises(IsvitError, match=rf"{quantizer.role.value}.*before it was calibrated.*isvit fit"):
        quantizer(samples)


@BY_NAME
def test_frozen_is_not_calibrated_again(name: str) -> None:
    quantizer, samples = build(name)
    quantizer.calibrate(samples)
    quantizer.freeze()
    before = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(IsvitError, match="frozen"):
        quantizer.calibrate(samples / 2)
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())
    quantizer.unfreeze()
    quantizer.calibrate(samples / 2)
    assert quantizer.calibrated


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
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_buffers_are_nan_of_the_final_shape_until_calibrated(name: str, granularity: str) -> None:
    quantizer, samples = build(name, granularity=granularity)
    shapes = {key: value.shape for key, value in quantizer.state_dict().items()}
    assert shapes
    assert all(bool(value.isnan().all()) for value in quantizer.state_dict().values())
    assert set(shapes.values()) == {torch.Size(quantizer.granularity.shape)}
    quantizer.calibrate(samples)
    quantizer(samples)
    assert {key: value.shape for key, value in quantizer.state_dict().items()} == shapes
    assert all(bool(value.isfinite().all()) for value in quantizer.state_dict().values())


@BY_NAME
def test_grid_is_made_of_buffers_alone(name: str) -> None:
    quantizer, samples = build(name)
    quantizer.calibrate(samples.requires_grad_())
    assert list(quantizer.parameters()) == []
    assert not any(buffer.requires_grad for buffer in quantizer.buffers())


@BY_NAME
def test_deep_copy_is_calibrated_and_independent(name: str) -> None:
    quantizer, samples = build(name)
    quantizer.calibrate(samples)
    before = quantizer(samples)
    twin = copy.deepcopy(quantizer)
    quantizer.calibrate(samples * 0.1)
    assert torch.equal(twin(samples), before)


@BY_NAME
def test_loading_an_uncalibrated_state_makes_uncalibrated(name: str) -> None:
    quantizer, samples = build(name)
    empty = copy.deepcopy(quantizer.state_dict())
    quantizer.calibrate(samples)
    quantizer.load_state_dict(empty)
    with pytest.raises(IsvitError, match="before it was calibrated"):
        quantizer(samples)


def test_refresh_follows_a_change_from_outside() -> None:
    quantizer = UniformQuantizer(4)
    quantizer.scale.fill_(0.5)
    quantizer.zero_point.fill_(4.0)
    assert not quantizer.calibrated
    quantizer.refresh()
    assert quantizer.calibrated
    assert quantizer(torch.tensor([-9.0, 0.2, 0.3, 9.0])).tolist() == [-2.0, 0.0, 0.5, 5.5]


def test_repr_tells_role_bits_codes_and_granularity() -> None:
    quantizer = UniformQuantizer(3, role=Role.GELU_OUT)
    assert "gelu_out, 3 bits, 8 codes, per tensor" in repr(quantizer)


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
