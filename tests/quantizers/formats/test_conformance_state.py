"""What every number format has to do with its grid: as buffers, in files, and for samples that no grid fits."""

import copy
import json

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import (
    PerChannel,
    PerTensor,
    Quantizer,
    Spec,
    Uniform,
)
from tests.helpers import GRANULARITIES
from tests.quantizers.formats.cases import (
    CASES,
    EVERY,
    EVERY_GRANULARITY,
    build,
    calibrated,
)


@EVERY
@EVERY_GRANULARITY
def test_grid_numbers_are_buffers_that_round_trip(name: str, granularity: str) -> None:
    source, samples = build(name, 3, granularity)
    target, _ = build(name, 3, granularity)
    layout = {key: value.shape for key, value in source.state_dict().items()}
    assert tuple(layout) == source.format.numbers
    assert set(layout.values()) == {torch.Size(source.granularity.shape)}
    assert all(bool(value.isnan().all()) for value in source.state_dict().values())
    source.calibrate(samples.requires_grad_())
    source(samples)
    assert list(source.parameters()) == []
    assert not any(buffer.requires_grad for buffer in source.buffers())
    assert {key: value.shape for key, value in source.state_dict().items()} == layout
    assert all(bool(value.isfinite().all()) for value in source.state_dict().values())
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    assert target.calibrated
    for tensor in (samples, samples * 0.7):
        assert torch.equal(target(tensor), source(tensor))
        assert torch.equal(target.encode(tensor), source.encode(tensor))
    assert torch.equal(target.table(), source.table())


@EVERY
@EVERY_GRANULARITY
def test_a_file_of_plain_values_and_numbers_makes_it_again(name: str, granularity: str) -> None:
    source, samples = build(name, 3, granularity)
    source.calibrate(samples)
    spec = Spec.of(json.loads(json.dumps(source.spec.as_dict())))
    assert spec == source.spec
    made = Quantizer(spec)
    assert not made.calibrated
    made.load_state_dict(source.state_dict())
    assert torch.equal(made(samples), source(samples))
    assert torch.equal(made.encode(samples), source.encode(samples))


@EVERY
@pytest.mark.parametrize("use", ["forward", "encode", "decode", "table"])
def test_an_uncalibrated_one_raises_when_used(name: str, use: str) -> None:
    quantizer = CASES[name].quantizer()
    arguments = {"decode": (torch.zeros(3, dtype=torch.int32),), "table": ()}.get(use, (torch.rand(3),))
    with pytest.raises(IsvitError, match="before it was calibrated"):
        getattr(quantizer, use)(*arguments)


@EVERY
def test_each_number_makes_it_uncalibrated_where_it_is_missing(name: str) -> None:
    for number in CASES[name].format.numbers:
        quantizer, samples = calibrated(name)
        quantizer.get_buffer(number).fill_(torch.nan)
        quantizer.refresh()
        with pytest.raises(IsvitError, match="before it was calibrated"):
            quantizer(samples)


@EVERY
@EVERY_GRANULARITY
@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 1e-6, 1e-30, 5e4])
def test_a_constant_has_a_finite_grid(name: str, granularity: str, value: float) -> None:
    chosen, shape = GRANULARITIES[granularity]
    quantizer = CASES[name].quantizer(4, chosen)
    samples = torch.full(shape, value)
    for sign in (1,) if quantizer.format.non_negative else (1, -1):
        quantizer.calibrate(sign * samples)
        assert quantizer.calibrated
        assert bool(quantizer(sign * samples).isfinite().all())
        if isinstance(quantizer.format, Uniform):
            # Documented: the range runs from zero to the value, so both are on the grid.
            torch.testing.assert_close(quantizer(sign * samples), sign * samples, rtol=1e-6, atol=0)
            assert torch.equal(quantizer(0 * samples), 0 * samples)


@EVERY
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_constant_channel_among_others_has_a_finite_grid(name: str, value: float) -> None:
    _, samples = build(name)
    samples[..., 2] = value
    quantizer = CASES[name].quantizer(4, PerChannel(5))
    quantizer.calibrate(samples)
    assert all(bool(buffer.isfinite().all()) for buffer in quantizer.buffers())
    assert bool(quantizer(samples).isfinite().all())


@EVERY
@pytest.mark.parametrize("shape", [(0,), (0, 7, 5), (2, 0, 5)])
def test_empty_samples_are_an_error(name: str, shape: tuple[int, ...]) -> None:
    for granularity in (PerTensor(), PerChannel(5)):
        quantizer = CASES[name].quantizer(4, granularity)
        with pytest.raises(IsvitError, match=r"empty tensor.*data\.calibration_images"):
            quantizer.calibrate(torch.zeros(shape))
        assert not quantizer.calibrated


@EVERY
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_errors(name: str, bad: float) -> None:
    _, samples = build(name)
    spoiled = samples.clone()
    spoiled[1, 3, 2] = bad
    for granularity in (PerTensor(), PerChannel(5)):
        quantizer = CASES[name].quantizer(4, granularity)
        with pytest.raises(IsvitError, match=rf"{quantizer.role}.*NaN or infinity"):
            quantizer.calibrate(spoiled)
        assert not quantizer.calibrated


@EVERY
def test_negative_samples_are_an_error_where_the_format_holds_none(name: str) -> None:
    quantizer, samples = build(name)
    samples = torch.linspace(-3, 1, 50)
    if not quantizer.format.non_negative:
        quantizer.calibrate(samples)
        assert bool(quantizer(samples).isfinite().all())
        return
    with pytest.raises(IsvitError, match=f"negative values, expected none for {type(quantizer.format).__name__}"):
        quantizer.calibrate(samples)
    assert not quantizer.calibrated


@EVERY
def test_a_calibrated_one_shows_nan_and_clips_infinity(name: str) -> None:
    quantizer, samples = build(name)
    quantizer.calibrate(samples)
    values = quantizer(torch.tensor([torch.nan, torch.inf]))
    assert bool(values[0].isnan())
    assert values[1].item() == quantizer(torch.tensor([1e30])).item()
