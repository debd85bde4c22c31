"""What every number format has to do with codes and values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isvit_lightning.quantizers import (
    Format,
    Grid,
    PerChannel,
    ShiftedLog,
    Sulq,
    Uniform,
)
from isvit_lightning.quantizers.formats import PowerOfTwoFactors
from tests.helpers import GRANULARITIES
from tests.quantizers.formats.cases import (
    BITS,
    CASES,
    EVERY,
    EVERY_GRANULARITY,
    FEW,
    assert_same,
    build,
    calibrated,
    dense,
    drawn_with,
    real,
    slow_of,
)
from tests.quantizers.formats.slow import (
    clamped,
)


def test_no_format_is_left_out() -> None:
    own = {form for form in Format.__subclasses__() if form.__module__.startswith("isvit_lightning.")}
    assert {type(case.format) for case in CASES.values()} == own


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
def test_affine_exponents_and_integers_say_the_same_as_the_table(name: str, granularity: str) -> None:
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
    integers = form.integers(codes.clone(), grid)
    assert (integers is not None) is isinstance(form, ShiftedLog)
    if integers is not None:
        unit, numbers = integers
        assert torch.equal(numbers, numbers.round())
        assert 0 <= float(numbers.min()) <= float(numbers.max()) <= 255
        assert torch.equal(unit * numbers - form.shift(grid), table)


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
