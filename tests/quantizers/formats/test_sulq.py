"""SULQ against the tables of the method page (section 2.5) and a slow search."""

import math
from dataclasses import replace

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import Format, Granularity, Quantizer, Sulq, Uniform, per_head
from isvit_lightning.quantizers.formats.sulq import POWER_OF_TWO_ETAS
from isvit_lightning.recipe import read_recipe
from tests.helpers import PUBLISHED_ETAS, SULQ_SEARCH, quantizer_of

# eta: value that zero maps to, distinct values for 3, 4 and 6 bits with 2**b codes and with 2**b + 1.
TABLE = {
    0.001: (-2.344e-5, (8, 11, 11), (9, 11, 11)),
    0.005: (-1.094e-3, (8, 9, 9), (9, 9, 9)),
    0.01: (-2.188e-3, (8, 8, 8), (8, 8, 8)),
    0.02: (-4.375e-3, (7, 7, 7), (7, 7, 7)),
    0.03: (1.25e-3, (6, 6, 6), (6, 6, 6)),
    0.04: (-8.75e-3, (6, 6, 6), (6, 6, 6)),
    0.05: (1.25e-2, (5, 5, 5), (5, 5, 5)),
    0.1: (2.5e-2, (4, 4, 4), (4, 4, 4)),
    0.2: (5e-2, (3, 3, 3), (3, 3, 3)),
    0.5: (0.0, (3, 3, 3), (3, 3, 3)),
    1.0: (0.0, (2, 2, 2), (2, 2, 2)),
}
STRICT_POINTS = [-2.34e-5, 9.53e-4, 6.81e-3, 0.01463, 0.0615, 0.124, 0.499, 0.999]
PUBLISHED_POINTS = [-2.34e-5, 9.53e-4, 6.81e-3, 0.01463, 0.03025, 0.0615, 0.249, 0.499, 0.999]


def searching(
    bits: int,
    etas: tuple[float, ...] = POWER_OF_TWO_ETAS,
    extra_codes: int = 0,
    granularity: Granularity | None = None,
) -> Quantizer:
    """One that looks for its shift among ``etas``."""
    form = Sulq(extra_codes, steps_per_octave=1)
    return quantizer_of(form, bits, granularity, search=replace(SULQ_SEARCH, free=etas))


def over_unit_interval(bits: int, eta: float, extra_codes: int = 0) -> Quantizer:
    """Grid that spans 0 to 1, in float64."""
    quantizer = quantizer_of(Sulq(extra_codes, steps_per_octave=1), bits).double()
    offset = math.log2(eta)
    quantizer.eta.fill_(eta)
    quantizer.offset.fill_(offset)
    quantizer.step.fill_((math.log2(1 + eta) - offset) / (2**bits + extra_codes - 1))
    quantizer.refresh()
    return quantizer


def slow_values(samples: list[float], eta: float, bits: int) -> tuple[list[float], float, float]:
    """Section 2.2 in pure Python: quantized samples on the search grid, smallest and largest logarithm."""
    logs = [math.log2(x + eta) for x in samples]
    low, high = min(logs), max(logs)
    step = (high - low) / (2**bits - 1)
    codes = [min(max(round((y - low) / step), 0), 2**bits - 1) for y in logs]
    return [2.0 ** round(code * step + low) - eta for code in codes], low, high


def slow_search(samples: list[float], etas: tuple[float, ...], bits: int) -> tuple[float, float, float]:
    """Best ``eta`` with its smallest and largest logarithm."""
    best = (math.inf, 0.0, 0.0, 0.0)
    for eta in etas:
        values, low, high = slow_values(samples, eta, bits)
        error = sum((a - b) ** 2 for a, b in zip(values, samples, strict=True)) / len(samples)
        if error < best[0]:
            best = (error, eta, low, high)
    return best[1:]


def test_candidates() -> None:
    assert PUBLISHED_ETAS == (0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0)
    assert read_recipe("isvit_published").placement.attn_prob.search.free == PUBLISHED_ETAS
    assert Sulq.free == POWER_OF_TWO_ETAS
    assert POWER_OF_TWO_ETAS[0] == 1.0
    assert POWER_OF_TWO_ETAS[-1] == 2.0**-20
    assert all(math.log2(eta).is_integer() for eta in POWER_OF_TWO_ETAS)


@pytest.mark.parametrize("eta", PUBLISHED_ETAS)
def test_value_of_zero(eta: float) -> None:
    value = over_unit_interval(4, eta)(torch.zeros(1, dtype=torch.float64)).item()
    assert value == pytest.approx(TABLE[eta][0], rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("eta", PUBLISHED_ETAS)
@pytest.mark.parametrize("extra_codes", [0, 1])
@pytest.mark.parametrize(("column", "bits"), [(0, 3), (1, 4), (2, 6)])
def test_number_of_distinct_values(eta: float, extra_codes: int, column: int, bits: int) -> None:
    quantizer = over_unit_interval(bits, eta, extra_codes)
    assert quantizer.n_codes == 2**bits + extra_codes
    assert quantizer.decode(torch.arange(quantizer.n_codes)).unique().numel() == TABLE[eta][1 + extra_codes][column]


@pytest.mark.parametrize(("extra_codes", "points"), [(0, STRICT_POINTS), (1, PUBLISHED_POINTS)])
def test_three_bit_reconstruction_points(extra_codes: int, points: list[float]) -> None:
    quantizer = over_unit_interval(3, 0.001, extra_codes)
    assert quantizer.decode(torch.arange(len(points))).tolist() == pytest.approx(points, rel=2e-3)


@pytest.mark.parametrize("etas", [PUBLISHED_ETAS, POWER_OF_TWO_ETAS])
@pytest.mark.parametrize("extra_codes", [0, 1])
@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("temperature", [0.5, 3.0, 8.0])
def test_search_against_a_slow_loop(etas: tuple[float, ...], extra_codes: int, bits: int, temperature: float) -> None:
    quantizer = searching(bits, etas, extra_codes).double()
    samples = (torch.randn(2, 3, 8, 8, dtype=torch.float64) * temperature).softmax(dim=-1)
    quantizer.calibrate(samples)
    eta, low, high = slow_search(samples.flatten().tolist(), etas, bits)
    assert quantizer.eta.item() == eta
    assert quantizer.offset.item() == pytest.approx(low, rel=1e-12)
    # The search always spends 2**bits codes; the published run-time grid is finer by one.
    assert quantizer.step.item() == pytest.approx((high - low) / (2**bits + extra_codes - 1), rel=1e-12)


def test_search_per_head_is_one_search_for_each_head() -> None:
    temperature = torch.tensor([0.5, 3.0, 8.0]).view(3, 1, 1)
    samples = (torch.randn(4, 3, 8, 8) * temperature).softmax(dim=-1)
    together = searching(3, granularity=per_head(3))
    together.calibrate(samples)
    assert together.eta.unique().numel() > 1
    for head in range(3):
        alone = searching(3)
        alone.calibrate(samples[:, head])
        for name in ("eta", "offset", "step"):
            assert together.get_buffer(name)[head].item() == alone.get_buffer(name).item()
        assert torch.equal(together(samples)[:, head], alone(samples[:, head]))


def test_powers_of_two_make_zero_exact() -> None:
    for eta in POWER_OF_TWO_ETAS:
        assert over_unit_interval(4, eta).float()(torch.zeros(1)).item() == 0.0


@pytest.mark.parametrize("etas", [PUBLISHED_ETAS, POWER_OF_TWO_ETAS])
@pytest.mark.parametrize("value", [0.0, 0.0625, 0.25, 1 / 3, 1.0])
def test_constant_tensor_has_a_finite_grid(value: float, etas: tuple[float, ...]) -> None:
    quantizer = searching(4, etas)
    samples = torch.full((2, 2, 4, 4), value)
    quantizer.calibrate(samples)
    assert all(bool(buffer.isfinite().all()) for buffer in quantizer.buffers())
    assert quantizer.step.item() == 1.0
    best = min(abs(2.0 ** round(math.log2(value + eta)) - eta - value) for eta in etas)
    assert (quantizer(samples) - value).abs().max().item() == pytest.approx(best, abs=1e-6)


def test_big_tensor_is_thinned_for_the_search_but_not_for_the_range() -> None:
    samples = torch.rand(2**21 + 5) * 0.5 + 0.1
    samples[12_345], samples[1_000_001] = 0.9, 1e-4
    quantizer = searching(4, (0.01,))
    quantizer.calibrate(samples)
    assert quantizer.offset.item() == pytest.approx(math.log2(1e-4 + 0.01), rel=1e-5)
    top = quantizer.offset + quantizer.step * 15
    assert top.item() == pytest.approx(math.log2(0.91), abs=1e-5)


def test_example_of_the_paper() -> None:
    """Section 2.1: with eta 1e-6, exponent -14 stands for 6.0035e-5."""
    quantizer = over_unit_interval(3, 1e-6)
    values = quantizer.decode(torch.arange(8))
    assert 2.0**-14 - 1e-6 in values.tolist()
    assert quantizer(torch.tensor([2.38e-5], dtype=torch.float64)).item() == 2.0**-14 - 1e-6


@pytest.mark.parametrize(("bits", "steps"), [(2, 1), (3, 1), (4, 1), (5, 256), (6, 256), (8, 256)])
def test_steps_per_octave_fit_the_width(bits: int, steps: int) -> None:
    assert quantizer_of(Sulq(), bits).format == Sulq(steps_per_octave=steps)
    assert quantizer_of(Sulq(steps_per_octave=2), bits).format == Sulq(steps_per_octave=2)


@pytest.mark.parametrize("bits", [5, 6, 8])
@pytest.mark.parametrize("temperature", [0.5, 3.0, 8.0])
def test_wide_codes_all_have_a_value_and_are_as_close_as_uniform_ones(bits: int, temperature: float) -> None:
    samples = (torch.randn(4, 3, 16, 16, dtype=torch.float64) * temperature).softmax(dim=-1)

    def measured(form: Format) -> tuple[int, float]:
        quantizer = quantizer_of(form, bits).double()
        quantizer.calibrate(samples)
        return quantizer.table().unique().numel(), float((quantizer(samples) - samples).square().mean().sqrt())

    values, error = measured(Sulq())
    assert values == 2**bits
    assert error <= measured(Uniform())[1]
    values, whole = measured(Sulq(steps_per_octave=1))
    assert values <= 21
    assert whole > 5 * error


@pytest.mark.parametrize("steps", [0, -1, 257])
def test_other_steps_are_refused(steps: int) -> None:
    with pytest.raises(IsvitError, match=rf"steps_per_octave {steps}, expected 1 to 256: .*placement"):
        Sulq(steps_per_octave=steps)


@pytest.mark.parametrize("extra", [-1, 2])
def test_fewer_codes_and_more_than_the_published_one_are_refused(extra: int) -> None:
    with pytest.raises(IsvitError, match=rf"extra_codes {extra}, expected 0 or 1.*placement"):
        Sulq(extra_codes=extra)
