"""Percentile search against a slow loop over channels, candidates and elements."""

from dataclasses import replace

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantConv2d, QuantLinear
from isvit_lightning.quantizers import Granularity, Log, PerChannel, PerTensor, Site, Spec, Sulq, Uniform
from isvit_lightning.recipe import read_recipe
from isvit_lightning.recipe.placement import WEIGHT_PERCENTILES
from isvit_lightning.search import Percentiles
from isvit_lightning.search.percentiles import ACTIVATION_PERCENTILES, _outermost, quantile_pairs, token_weights
from tests.helpers import GRANULARITIES, quantizer_of

LISTS = {"activations": ACTIVATION_PERCENTILES, "weights": WEIGHT_PERCENTILES}
TOKEN_PERCENTILES = read_recipe("isvit").placement.proj_in.search.percentiles
BLOCKS = ("isvit_lightning.search.best._BLOCK", "isvit_lightning.search.percentiles._BLOCK")


def choose(groups: torch.Tensor, bits: int, search: Percentiles) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of each row of ``groups``, each ``(rows,)``."""
    spec = Spec(Uniform(), bits, PerChannel(len(groups), axis=-2))
    scale, zero = search.choose(spec, Site(groups))
    assert scale.shape == zero.shape == (len(groups), 1)
    return scale.flatten(), zero.flatten()


def slow_search(group: torch.Tensor, n_codes: int, search: Percentiles) -> tuple[float, float, float]:
    """Scale, zero point and error of one group by section 4 of the method page, in float64 with ``torch.quantile``."""
    values = group.double()
    best = (0.0, 0.0, float("inf"))
    for percentile in search.percentiles:
        high = float(torch.quantile(values, percentile))
        low = float(torch.quantile(values, 1 - percentile))
        if search.include_zero is not False:
            low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / (n_codes - 1)
        zero = round(-low / scale)
        quantized = ((values / scale).round() + zero).clamp(0, n_codes - 1)
        error = float(((quantized - zero) * scale - values).square().mean())
        if error < best[2]:
            best = (scale, float(zero), error)
    return best


def test_candidate_lists_are_the_published_ones() -> None:
    assert ACTIVATION_PERCENTILES == (0.999, 0.9999, 0.99999)
    assert WEIGHT_PERCENTILES == (0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999)


@pytest.mark.parametrize("candidates", LISTS)
@pytest.mark.parametrize("include_zero", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_a_loop_over_channels(candidates: str, include_zero: bool, bits: int, dtype: torch.dtype) -> None:
    search = Percentiles(LISTS[candidates], include_zero)
    spread = torch.tensor([1e-3, 0.1, 1.0, 7.0, 300.0]).unsqueeze(1)
    groups = (torch.randn(5, 1500, dtype=dtype) * spread).to(dtype)
    groups[1] = groups[1].abs() + 0.05
    groups[2] -= 9
    groups[3, :3] = torch.tensor([90.0, -80.0, 75.0])
    scale, zero = choose(groups, bits, search)
    assert scale.shape == zero.shape == (5,)
    for index, group in enumerate(groups):
        expected_scale, expected_zero, _ = slow_search(group, 2**bits, search)
        assert float(zero[index]) == expected_zero
        assert float(scale[index]) == pytest.approx(expected_scale, rel=1e-6 if dtype is torch.float64 else 1e-5)


def test_one_group_is_the_same_as_among_others() -> None:
    groups = torch.randn(4, 900)
    search = Percentiles(WEIGHT_PERCENTILES)
    together = choose(groups, 4, search)
    for index in range(4):
        alone = choose(groups[index : index + 1], 4, search)
        assert alone[1].item() == together[1][index].item()
        assert alone[0].item() == pytest.approx(together[0][index].item(), rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101, 1001])
def test_few_elements(count: int) -> None:
    groups = torch.randn(3, count, dtype=torch.float64) + 0.5
    search = Percentiles(WEIGHT_PERCENTILES)
    scale, zero = choose(groups, 4, search)
    for index, group in enumerate(groups):
        expected_scale, expected_zero, error = slow_search(group, 16, search)
        measured = (
            (group / scale[index]).round().clamp(-zero[index], 15 - zero[index]) * scale[index] - group
        ).square()
        # With few elements many candidates tie to the last bit: the error decides, not which of them won.
        assert float(measured.mean()) == pytest.approx(error, rel=1e-9, abs=1e-25)
        assert float(zero[index]) == expected_zero
        assert float(scale[index]) == pytest.approx(expected_scale, rel=1e-2)


@pytest.mark.parametrize("candidates", LISTS)
@pytest.mark.parametrize("surplus", [1, 12345])
def test_big_tensor_has_the_quantiles_of_a_full_sort(candidates: str, surplus: int) -> None:
    count = 2**20 + surplus
    groups = torch.randn(1, count, dtype=torch.float64)
    groups[0, 7] = 80.0
    search = Percentiles(LISTS[candidates])
    ordered = groups[0].sort().values

    def quantile(share: float) -> float:
        position = share * (count - 1)
        below = int(position)
        above = min(below + 1, count - 1)
        return float(ordered[below] + (ordered[above] - ordered[below]) * (position - below))

    best = (0.0, 0.0, float("inf"))
    for percentile in search.percentiles:
        low, high = quantile(1 - percentile), quantile(percentile)
        scale = (high - low) / 15
        zero = round(-low / scale)
        error = float(((groups / scale).round().clamp(-zero, 15 - zero) * scale - groups).square().mean())
        if error < best[2]:
            best = (scale, zero, error)
    scale_found, zero_found = choose(groups, 4, search)
    assert zero_found.item() == best[1]
    assert scale_found.item() == pytest.approx(best[0], rel=1e-9)


@pytest.mark.parametrize("candidates", [WEIGHT_PERCENTILES, ACTIVATION_PERCENTILES, (0.8, 0.9)])
@pytest.mark.parametrize("shape", [(3, 5000), (40, 768), (1, 17), (5, 1)])
def test_selecting_the_tails_and_sorting_agree_bit_for_bit(
    candidates: tuple[float, ...], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = torch.randn(shape)
    groups[:, ::3] = groups[:, :1].clone()  # ties
    search = Percentiles(candidates)
    ways = []
    for share in (0.0, 1.0):
        monkeypatch.setattr("isvit_lightning.search.percentiles._TAIL_SHARE", share)
        ways.append(choose(groups, 4, search))
    assert torch.equal(ways[0][0], ways[1][0])
    assert torch.equal(ways[0][1], ways[1][1])


def test_zeros_get_the_mean_scale_of_the_others() -> None:
    groups = torch.randn(4, 500)
    groups[2] = 0
    scale, zero = choose(groups, 4, Percentiles(percentiles=(0.999,)))
    assert zero[2].item() == 0
    assert scale[2].item() == pytest.approx(scale[[0, 1, 3]].mean().item())


def test_zeros_alone_get_scale_one() -> None:
    scale, zero = choose(torch.zeros(3, 20), 4, Percentiles())
    assert scale.tolist() == [1.0, 1.0, 1.0]
    assert zero.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("include_zero", [True, False])
@pytest.mark.parametrize("value", [3.7, -0.2, 1e-6, -4e5])
def test_constant_group_spans_zero_to_its_value(value: float, include_zero: bool) -> None:
    scale, zero = choose(torch.full((1, 50), value), 4, Percentiles(include_zero=include_zero))
    assert scale.item() == pytest.approx(abs(value) / 15)
    assert zero.item() == (0 if value > 0 else 15)


@pytest.mark.parametrize("bits", range(2, 9))
def test_range_with_zero_keeps_the_zero_point_a_code(bits: int) -> None:
    shift = torch.linspace(-9, 9, 41).unsqueeze(1)
    _, zero = choose(torch.randn(41, 200) + shift, bits, Percentiles())
    assert bool((zero >= 0).all())
    assert bool((zero <= 2**bits - 1).all())
    assert torch.equal(zero, zero.round())


def test_range_without_zero_is_the_published_one() -> None:
    _, zero = choose(torch.randn(1, 500) + 40, 4, Percentiles(include_zero=False))
    assert zero.item() < -15


def test_first_of_equal_candidates_wins() -> None:
    groups = torch.cat([torch.zeros(1, 600), torch.ones(1, 600)], dim=1)
    scale, zero = choose(groups, 2, Percentiles(percentiles=(0.999, 0.9)))
    assert (scale.item(), zero.item()) == (pytest.approx(1 / 3), 0.0)


@pytest.mark.parametrize(("dtype", "spread"), [(torch.float16, 1500.0), (torch.float32, 1e25)])
def test_squared_error_that_overflows_does_not_lose_the_range(dtype: torch.dtype, spread: float) -> None:
    quantizer = quantizer_of()
    samples = (torch.randn(20_000) * spread).to(dtype)
    quantizer.calibrate(samples)
    error = (quantizer(samples.float()).double() - samples.double()).norm() / samples.double().norm()
    assert float(error) < 0.3


def slow_token_error(samples: torch.Tensor, scale: float, zero: float, n_codes: int) -> float:
    """Mean over tokens of squared error over variance, in float64, token by token."""
    rows = samples.double().reshape(-1, samples.shape[-1])
    variances = [float(row.var(correction=0)) for row in rows]
    floor = 1e-3 * sum(variances) / len(variances)
    errors = []
    for row, variance in zip(rows, variances, strict=True):
        quantized = (((row / scale).round() + zero).clamp(0, n_codes - 1) - zero) * scale
        errors.append(float((quantized - row).square().mean()) / (variance + floor))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("shape", [(4, 25, 16), (2, 5, 10, 16), (100, 16)])
def test_a_range_per_token_has_the_smallest_relative_error_of_all_candidates(bits: int, shape: tuple[int, ...]) -> None:
    samples = torch.randn(shape)
    samples.view(-1, 16)[7] *= 80
    search = Percentiles(TOKEN_PERCENTILES, per_token=True)
    quantizer = quantizer_of(bits=bits, search=search)
    quantizer.calibrate(samples)
    chosen = slow_token_error(samples, float(quantizer.scale), float(quantizer.zero_point), 2**bits)
    for percentile in TOKEN_PERCENTILES:
        single = quantizer_of(bits=bits, search=Percentiles((percentile,)))
        single.calibrate(samples)
        error = slow_token_error(samples, float(single.scale), float(single.zero_point), 2**bits)
        assert chosen <= error * (1 + 1e-5)


def test_one_enormous_token_takes_all_codes_unless_errors_count_per_token() -> None:
    samples = torch.randn(8, 50, 32)
    samples[3, 11] *= 200
    spread = {}
    for per_token in (False, True):
        quantizer = quantizer_of(search=Percentiles(TOKEN_PERCENTILES, per_token=per_token))
        quantizer.calibrate(samples)
        spread[per_token] = float(quantizer.scale) * 15
    assert spread[False] > 100
    assert spread[True] < 20


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_samples_have_a_range_per_token_too(value: float) -> None:
    quantizer = quantizer_of(search=Percentiles(TOKEN_PERCENTILES, per_token=True))
    quantizer.calibrate(torch.full((2, 3, 4), value))
    assert quantizer(torch.full((1, 3, 4), value)).tolist()[0][0][0] == pytest.approx(value, rel=1e-6)
    assert bool(torch.isfinite(quantizer.scale))


def test_weights_of_tokens_are_one_over_their_variance() -> None:
    samples = torch.randn(3, 5, 64, dtype=torch.float64) * torch.arange(1, 6, dtype=torch.float64).view(1, 5, 1)
    weights = token_weights(samples)
    products = weights * samples.var(dim=-1, keepdim=True, correction=0)
    assert torch.allclose(products, products[0, 0, 0].expand_as(products), rtol=2e-2)


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        (PerTensor(), (60_000, 1)),
        (PerTensor(), (3, 1000, 20)),
        (PerChannel(7, axis=-2), (7, 9_001)),
        (PerChannel(40), (300, 40)),
    ],
)
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("room", BLOCKS)
def test_blocks_change_nothing(
    granularity: Granularity, shape: tuple[int, ...], per_token: bool, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = torch.randn(shape, dtype=torch.float64) * torch.linspace(0.1, 4, shape[-1], dtype=torch.float64)
    found = []
    for block in (2**30, 500):
        monkeypatch.setattr(room, block)
        found.append(Percentiles(per_token=per_token).choose(Spec(Uniform(), 3, granularity), Site(samples)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_outermost_values_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = torch.randn(3, 1000)
    monkeypatch.setattr("isvit_lightning.search.percentiles._BLOCK", 60)
    for largest in (False, True):
        wanted = groups.sort(dim=1, descending=largest).values[:, :37]
        assert torch.equal(_outermost(groups, 37, largest), wanted)


@pytest.mark.parametrize("wanted", [(0.97, 0.999, 1.0), (0.8, 0.6)])
@pytest.mark.parametrize("count", [1, 2, 30, 4001])
def test_quantiles_are_those_of_torch(wanted: tuple[float, ...], count: int) -> None:
    groups = torch.randn(3, count, dtype=torch.float64)
    shares = torch.tensor(wanted, dtype=torch.float64)
    lows, highs = quantile_pairs(groups, wanted)
    torch.testing.assert_close(lows, torch.quantile(groups, 1 - shares, dim=1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(highs, torch.quantile(groups, shares, dim=1), rtol=1e-9, atol=1e-12)
    outer = quantile_pairs(groups, wanted, interpolate=False)
    ordered = groups.sort(dim=1).values
    for index, share in enumerate(wanted):
        place = int((1 - share) * (count - 1))
        assert torch.equal(outer[0][index], ordered[:, place])
        assert torch.equal(outer[1][index], ordered[:, count - 1 - place])


@pytest.mark.parametrize("wrong", [(), (0.5,), (0.99, 1.01), (-0.9,)])
def test_percentiles_that_make_no_range_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(IsvitError, match=r"expected at least one each, above 0.5 and up to 1.*placement"):
        Percentiles(wrong)


def test_nothing_to_try_for_an_open_number_is_refused() -> None:
    with pytest.raises(IsvitError, match=r"\(\) for what they leave open, expected at least one each"):
        Percentiles(free=())


@pytest.mark.parametrize("name", GRANULARITIES)
def test_numbers_have_the_shape_of_the_granularity(name: str) -> None:
    granularity, shape = GRANULARITIES[name]
    for form in (Uniform(), Log(), Sulq()):
        grid = Percentiles().choose(Spec(form, 4, granularity), Site(torch.rand(shape)))
        assert len(grid) == len(form.numbers)
        assert {number.shape for number in grid} == {torch.Size(granularity.shape)}


def test_the_open_number_is_one_of_the_given_or_of_the_format() -> None:
    samples = torch.randn(4, 3, 30, 30).softmax(dim=-1)
    spec = Spec(Sulq(), 4)
    assert float(Percentiles((1.0,), free=(0.3, 0.4)).choose(spec, Site(samples))[0]) in torch.tensor([0.3, 0.4])
    assert float(Percentiles((1.0,)).choose(spec, Site(samples))[0]) in Sulq.free
    assert float(Percentiles((1.0,), free=(0.02,)).choose(spec, Site(samples))[0]) == pytest.approx(0.02)


def test_errors_are_measured_on_the_samples_asked_for_and_ranges_on_all() -> None:
    groups = torch.rand(1, 3000)
    groups[0, 1001] = 50.0
    search = Percentiles((1.0, 0.999))
    # The one outlier decides where all samples count, and is not seen among every third of them.
    (whole, _), (thinned, _) = choose(groups, 3, search), choose(groups, 3, replace(search, samples=1000))
    assert float(whole) == pytest.approx(50 / 7)
    assert float(thinned) < 1 / 7
    # It takes part in the range all the same.
    (outer, _) = choose(groups, 3, Percentiles((1.0,), samples=1000))
    assert float(outer) == pytest.approx(50 / 7)


def test_inputs_of_convolutions_have_no_tokens() -> None:
    """Their last axis holds columns: errors count alike there, and by token in front of a linear layer."""
    samples = torch.randn(2, 8, 50, 32)
    samples[1, 3, 11] *= 200
    conv = QuantConv2d(torch.nn.Conv2d(8, 4, 1), None, None)
    linear = QuantLinear(torch.nn.Linear(32, 4), None, None)
    spec, counted = Spec(Uniform(), 4), Percentiles(TOKEN_PERCENTILES, per_token=True)
    alike = Percentiles(TOKEN_PERCENTILES).choose(spec, Site(samples))
    for site in (Site(samples), Site(samples, linear), Site(samples, conv, "weight")):
        assert float(counted.choose(spec, site)[0]) < float(alike[0]) / 3
    assert counted.choose(spec, Site(samples, conv)) == alike
