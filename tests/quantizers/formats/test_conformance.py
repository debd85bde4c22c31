"""What every number format has to do. A new one is a line in ``CASES``, and its formula in ``slow.py``."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import (
    Format,
    Granularity,
    Grid,
    Log,
    PerChannel,
    PerTensor,
    Quantizer,
    Search,
    ShiftedLog,
    Spec,
    Sulq,
    Uniform,
)
from isvit_lightning.quantizers.formats import AdaLog, AnchoredUniform, PowerOfTwoFactors, Tangent, TwinUniform
from isvit_lightning.search import Percentiles
from tests.helpers import GRANULARITIES, LOG_SEARCH, PUBLISHED_SULQ_SEARCH, SULQ_SEARCH
from tests.quantizers.formats.slow import (
    Slow,
    SlowAdaLog,
    SlowAnchoredUniform,
    SlowLog,
    SlowPowerOfTwoFactors,
    SlowShiftedLog,
    SlowSqrt2,
    SlowSulq,
    SlowTangent,
    SlowTwinUniform,
    SlowUniform,
    clamped,
)

GELU_SHIFT = 0.16997124


def real(samples: torch.Tensor) -> torch.Tensor:
    """Any tensor as it is."""
    return samples


def probabilities(samples: torch.Tensor) -> torch.Tensor:
    """Attention probabilities."""
    return (samples * 3).softmax(dim=-1)


def gelu(samples: torch.Tensor) -> torch.Tensor:
    """Outputs of a GELU."""
    return torch.nn.functional.gelu(samples * 2)


@dataclass(frozen=True)
class Case:
    """A format as it is used.

    Args:
        format: the format.
        search: how its grid is chosen.
        samples: makes values that the format is for from random ones.
        slow: the formula in pure Python, from the numbers of a grid.
        extra: codes beyond ``2**bits`` of a reproduction.
        fractional: whether values are powers with fractions, whose last bit depends on their place in a tensor: vectors
            and what is left of them are computed differently.
    """

    format: Format
    search: Search
    samples: Callable[[torch.Tensor], torch.Tensor]
    slow: Callable[..., Slow]
    extra: int = 0
    fractional: bool = False

    def quantizer(self, bits: int = 4, granularity: Granularity | None = None) -> Quantizer:
        return Quantizer(Spec(self.format, bits, granularity or PerTensor()), self.search)


CASES = {
    "uniform": Case(Uniform(), Percentiles(), real, SlowUniform),
    "uniform_without_zero": Case(Uniform(), Percentiles(include_zero=False), real, SlowUniform),
    "log2": Case(Log(1), LOG_SEARCH, probabilities, SlowLog),
    "log_sqrt2": Case(Log(2), LOG_SEARCH, probabilities, SlowSqrt2, fractional=True),
    "sulq": Case(Sulq(steps_per_octave=1), SULQ_SEARCH, probabilities, SlowSulq),
    "sulq_fine": Case(
        Sulq(steps_per_octave=256), SULQ_SEARCH, probabilities, partial(SlowSulq, steps_per_octave=256), fractional=True
    ),
    "sulq_published": Case(
        Sulq(extra_codes=1, steps_per_octave=1), PUBLISHED_SULQ_SEARCH, probabilities, SlowSulq, extra=1
    ),
    "adalog": Case(AdaLog(), Percentiles((1.0,)), probabilities, SlowAdaLog, fractional=True),
    "adalog_gelu": Case(AdaLog(GELU_SHIFT), Percentiles((0.999, 1.0)), gelu, SlowAdaLog, fractional=True),
    "shifted_log": Case(ShiftedLog(), Percentiles((0.999, 1.0)), gelu, SlowShiftedLog),
    "shifted_log_of_any_tensor": Case(ShiftedLog(), Percentiles((0.999, 1.0)), real, SlowShiftedLog),
    "twin_uniform": Case(TwinUniform(), Percentiles((1.0,)), probabilities, SlowTwinUniform),
    "twin_uniform_gelu": Case(
        TwinUniform(signed=True), Percentiles((0.999, 1.0)), gelu, partial(SlowTwinUniform, signed=True)
    ),
    "tangent": Case(Tangent(), Percentiles((1.0,)), probabilities, SlowTangent, fractional=True),
    "anchored_uniform": Case(AnchoredUniform(), Percentiles((1.0,)), real, SlowAnchoredUniform),
    "power_of_two_factors": Case(PowerOfTwoFactors(), Percentiles((1.0,)), real, SlowPowerOfTwoFactors),
}
"""Each format, its search, the values that it is for, its formula."""

EVERY = pytest.mark.parametrize("name", CASES)
BITS = pytest.mark.parametrize("bits", range(2, 9))
EVERY_GRANULARITY = pytest.mark.parametrize("granularity", GRANULARITIES)


def build(name: str, bits: int = 4, granularity: str = "per_tensor") -> tuple[Quantizer, torch.Tensor]:
    """An uncalibrated quantizer and samples for it."""
    chosen, shape = GRANULARITIES[granularity]
    return CASES[name].quantizer(bits, chosen), CASES[name].samples(torch.randn(shape) + 0.3)


def calibrated(name: str, bits: int = 4, granularity: str = "per_tensor") -> tuple[Quantizer, torch.Tensor]:
    """A quantizer in float64, calibrated on the samples."""
    quantizer, samples = build(name, bits, granularity)
    quantizer.double().calibrate(samples.double())
    return quantizer, samples.double()


def dense(name: str, samples: torch.Tensor) -> torch.Tensor:
    """Many values from below the smallest of the ``samples`` to above the largest, and close to zero."""
    low, high = float(samples.min()), float(samples.max())
    line = torch.linspace(low - 1, high + 1, 30_000, dtype=torch.float64)
    tiny = torch.logspace(-80, 2, 30_000, dtype=torch.float64)
    values = torch.cat([line, tiny, tiny - GELU_SHIFT])
    return values[values >= 0] if CASES[name].samples is probabilities else values


def slow_of(name: str, quantizer: Quantizer, index: int = 0) -> Slow:
    """The pure Python form of one grid of ``quantizer``."""
    return CASES[name].slow(*(number.flatten()[index].item() for number in quantizer.grid))


def assert_same(name: str, values: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal values, bit for bit wherever the format allows that in two layouts of a tensor."""
    if CASES[name].fractional:
        last = 4 * torch.finfo(values.dtype).eps
        # The shift of the largest values leaves the last bit of their base.
        torch.testing.assert_close(values, expected, rtol=last, atol=last * float(expected.abs().max()))
    else:
        assert torch.equal(values, expected)


@st.composite
def drawn_with(draw: st.DrawFn, name: str) -> tuple[Quantizer, torch.Tensor]:
    """A calibrated quantizer of any width and granularity, and a tensor for it that also leaves its range."""
    granularity, shape = GRANULARITIES[draw(st.sampled_from(sorted(GRANULARITIES)))]
    quantizer = CASES[name].quantizer(draw(st.integers(2, 8)), granularity)
    samples = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1))))
    if CASES[name].samples is real:
        samples = (samples + draw(st.floats(-2, 2))) * 10.0 ** draw(st.integers(-6, 4))
        special = st.floats(-1e6, 1e6, width=32)
    else:
        samples = CASES[name].samples(samples * draw(st.sampled_from([0.03, 0.3, 1.5, 10.0])))
        special = st.floats(0, 1, width=32)
    quantizer.calibrate(samples)
    tensor = samples.clone()
    flat = tensor.view(-1)
    # Far outside, tiny, zero, and whatever else hypothesis comes up with.
    flat[0], flat[1], flat[2] = 3 * samples.max(), 3 * samples.min(), 0.0
    for index, value in enumerate(draw(st.lists(special, max_size=6))):
        flat[3 + index] = value
    return quantizer, tensor


FEW = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def test_no_format_is_left_out() -> None:
    own = {form for form in Format.__subclasses__() if form.__module__.startswith("isvit_lightning.")}
    assert {type(case.format) for case in CASES.values()} == own


# Codes ----------------------------------------------------------------------------------------------------------------


@EVERY
@BITS
def test_b_bits_are_2_to_the_b_codes(name: str, bits: int) -> None:
    extra = CASES[name].extra
    quantizer, samples = calibrated(name, bits)
    # A waiver shows in the result.
    assert quantizer.n_codes == quantizer.format.n_codes(bits) == 2**bits + extra
    assert f"{2**bits + extra} codes" in repr(quantizer)
    tensor = dense(name, samples)
    codes = quantizer.encode(tensor)
    reached = set(codes.unique().tolist())
    assert {0, quantizer.n_codes - 1} <= reached <= set(range(2**bits + extra))
    base = quantizer.format.base(torch.arange(quantizer.n_codes, dtype=torch.float64), quantizer.grid)
    shift = quantizer.format.shift(quantizer.grid)
    # Far below the shift no number of the type has the code.
    told = torch.ones_like(base, dtype=torch.bool) if shift is None else base > 4 * torch.finfo(base.dtype).eps * shift
    assert set(torch.nonzero(told).flatten().tolist()) <= reached
    assert_same(name, quantizer(tensor), quantizer.table()[codes])
    in_float32, _ = build(name, bits)
    in_float32.calibrate(samples.float())
    assert in_float32(tensor.float()).unique().numel() <= 2**bits + extra


@EVERY
@pytest.mark.parametrize("bits", [2, 4, 6])
@EVERY_GRANULARITY
def test_calibration_measures_2_to_the_b_codes_of_the_grid_that_it_chooses(
    name: str, bits: int, granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = CASES[name].format
    measured: list[Grid] = []
    reconstruct = type(form).reconstruct

    def spy(self: Format, tensor: torch.Tensor, grid: Grid, n_codes: int) -> torch.Tensor:
        assert n_codes == 2**bits
        measured.append(grid)
        return reconstruct(self, tensor, grid, n_codes)

    monkeypatch.setattr(type(form), "reconstruct", spy)
    quantizer, _ = calibrated(name, bits, granularity)
    grid, n_codes = form.searched(quantizer.grid, quantizer.n_codes)
    assert n_codes == 2**bits
    # The published search is the one exception: its run-time grid is finer by its extra code.
    assert all(a is b for a, b in zip(grid, quantizer.grid, strict=True)) is not bool(CASES[name].extra)
    groups = max(1, math.prod(quantizer.granularity.shape))
    for group in range(groups):
        numbers = [number.flatten()[group] for number in grid]
        assert any(
            all(torch.equal(a.flatten()[group], b) for a, b in zip(candidate, numbers, strict=True))
            for candidate in measured
        )


@EVERY
@given(data=st.data())
@FEW
def test_decode_of_encode_is_forward_and_a_second_pass_changes_nothing(name: str, data: st.DataObject) -> None:
    quantizer, tensor = data.draw(drawn_with(name))
    codes, values = quantizer.encode(tensor), quantizer(tensor)
    assert codes.dtype == torch.int32
    assert codes.shape == tensor.shape
    assert int(codes.min()) >= 0
    assert int(codes.max()) < quantizer.n_codes
    assert torch.equal(quantizer.decode(codes), values)
    assert torch.equal(quantizer(values), values)
    assert torch.equal(quantizer.decode(quantizer.encode(values)), values)
    assert torch.equal(quantizer.format.reconstruct(tensor.clone(), quantizer.grid, quantizer.n_codes), values)
    # Every value stands in the table, in the place of its code.
    table = quantizer.table().view(quantizer.n_codes, -1)
    places = quantizer.granularity.group(codes).T.long()
    assert_same(name, table.gather(0, places), quantizer.granularity.group(values).T)


@EVERY
@pytest.mark.parametrize("bits", [2, 4, 8])
@EVERY_GRANULARITY
def test_codes_that_share_no_value_are_found_again(name: str, bits: int, granularity: str) -> None:
    """What is packed can be unpacked and packed again."""
    quantizer, _ = calibrated(name, bits, granularity)
    table = quantizer.table()
    codes = torch.arange(quantizer.n_codes, dtype=torch.int32).view(-1, *(1 for _ in table.shape[1:])).expand_as(table)
    alone = (table.unsqueeze(0) == table.unsqueeze(1)).sum(dim=0) == 1
    shift = quantizer.format.shift(quantizer.grid)
    if shift is None:
        assert bool(alone.all())
    else:
        # Far below the shift a value no longer tells its base.
        base = quantizer.format.base(codes.double(), quantizer.grid)
        alone &= (table + shift - base).abs() <= 1e-6 * base
    assert torch.equal(quantizer.encode(table)[alone], codes[alone])
    assert_same(name, quantizer(table), table)


@EVERY
@pytest.mark.parametrize("bits", [2, 4, 8])
@EVERY_GRANULARITY
def test_table_lists_the_value_of_each_code(name: str, bits: int, granularity: str) -> None:
    quantizer, _ = calibrated(name, bits, granularity)
    table = quantizer.table()
    assert table.shape == (quantizer.n_codes, *quantizer.granularity.shape)
    codes = torch.arange(quantizer.n_codes).view(-1, *(1 for _ in table.shape[1:])).expand_as(table)
    assert torch.equal(table, quantizer.decode(codes))


@EVERY
@EVERY_GRANULARITY
def test_affine_and_exponents_say_the_same_as_the_table(name: str, granularity: str) -> None:
    quantizer, _ = calibrated(name, 4, granularity)
    form, grid, table = quantizer.format, quantizer.grid, quantizer.table()
    codes = torch.arange(quantizer.n_codes, dtype=torch.float64).view(-1, *(1 for _ in table.shape[1:]))
    codes = codes.expand_as(table)
    affine = form.affine(grid)
    assert (affine is not None) is isinstance(form, Uniform | PowerOfTwoFactors)
    if affine is not None:
        scale, zero_point = affine
        assert torch.equal(scale * (codes - zero_point), table)
    exponents = form.exponents(codes.clone(), grid)
    assert (exponents is not None) is (isinstance(form, Sulq) and form.steps_per_octave == 1)
    if exponents is not None:
        assert torch.equal(exponents, exponents.round())
        shift = form.shift(grid)
        assert torch.equal(2.0**exponents - (0 if shift is None else shift), table)


@EVERY
@BITS
@pytest.mark.parametrize("sides", ["both", "above", "below"])
def test_codes_and_values_against_pure_python(name: str, bits: int, sides: str) -> None:
    case = CASES[name]
    samples = torch.randn(40, 25, dtype=torch.float64) + 0.2
    if case.samples is real and sides != "both":
        # The zero point at the first or last code, or beyond it.
        samples = (samples.abs() + 1) * (1 if sides == "above" else -1)
    samples = case.samples(samples)
    quantizer = case.quantizer(bits).double()
    quantizer.calibrate(samples)
    slow = slow_of(name, quantizer)
    tensor = torch.cat([samples.flatten(), dense(name, samples)[::97]])
    codes = [clamped(slow.code(x), quantizer.n_codes) for x in tensor.tolist()]
    assert quantizer.encode(tensor).tolist() == codes
    expected = [slow.value(code) for code in codes]
    assert quantizer(tensor).tolist() == pytest.approx(expected, rel=1e-13, abs=1e-15)
    assert quantizer.decode(torch.tensor(codes)).tolist() == pytest.approx(expected, rel=1e-13, abs=1e-15)


@EVERY
@pytest.mark.parametrize("granularity", [name for name in GRANULARITIES if name != "per_tensor"])
def test_a_grid_of_its_own_is_a_quantizer_of_its_own(name: str, granularity: str) -> None:
    quantizer, samples = calibrated(name, 4, granularity)
    axis = quantizer.granularity
    assert isinstance(axis, PerChannel)
    tensor = samples * 1.3
    codes, values = quantizer.encode(tensor), quantizer(tensor)
    for index in range(axis.size):
        single = CASES[name].quantizer().double()
        single.load_state_dict({key: number.flatten()[index] for key, number in quantizer.state_dict().items()})
        part = tensor.select(axis.axis, index)
        assert torch.equal(codes.select(axis.axis, index), single.encode(part))
        assert_same(name, values.select(axis.axis, index), single(part))


@EVERY
def test_strides_do_not_matter_and_tensors_are_left_alone(name: str) -> None:
    quantizer, samples = CASES[name].quantizer(4, PerChannel(5)), CASES[name].samples(torch.randn(5, 7)).T
    before = samples.clone()
    quantizer.calibrate(samples)
    assert_same(name, quantizer(samples), quantizer(samples.contiguous()))
    assert torch.equal(quantizer.encode(samples), quantizer.encode(samples.contiguous()))
    codes = quantizer.encode(samples)
    whole = codes.float()
    quantizer.decode(whole)
    quantizer.table()
    assert torch.equal(whole, codes.float())
    assert torch.equal(samples, before)


# State ----------------------------------------------------------------------------------------------------------------


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


# Gradients ------------------------------------------------------------------------------------------------------------


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


# Samples that no grid fits --------------------------------------------------------------------------------------------


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
