"""Percentile search against a slow loop over channels, candidates and elements."""

import pytest
import torch

from isvit_lightning.quantizers import RangeSearch, UniformQuantizer
from isvit_lightning.quantizers import search as search_module
from isvit_lightning.quantizers.search import (
    ACTIVATION_PERCENTILES,
    TOKEN_PERCENTILES,
    WEIGHT_PERCENTILES,
    percentile_search,
    token_weights,
)

LISTS = {"activations": ACTIVATION_PERCENTILES, "weights": WEIGHT_PERCENTILES}


def slow_search(group: torch.Tensor, n_codes: int, search: RangeSearch) -> tuple[float, float, float]:
    """Scale, zero point and error of one group by section 4 of the method page, in float64 with ``torch.quantile``."""
    values = group.double()
    best = (0.0, 0.0, float("inf"))
    for percentile in search.percentiles:
        high = float(torch.quantile(values, percentile))
        low = float(torch.quantile(values, 1 - percentile))
        if search.include_zero:
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
    search = RangeSearch(LISTS[candidates], include_zero)
    spread = torch.tensor([1e-3, 0.1, 1.0, 7.0, 300.0]).unsqueeze(1)
    groups = (torch.randn(5, 1500, dtype=dtype) * spread).to(dtype)
    groups[1] = groups[1].abs() + 0.05
    groups[2] -= 9
    groups[3, :3] = torch.tensor([90.0, -80.0, 75.0])
    scale, zero = percentile_search(groups, 2**bits, search)
    assert scale.shape == zero.shape == (5,)
    for index, group in enumerate(groups):
        expected_scale, expected_zero, _ = slow_search(group, 2**bits, search)
        assert float(zero[index]) == expected_zero
        assert float(scale[index]) == pytest.approx(expected_scale, rel=1e-6 if dtype is torch.float64 else 1e-5)


def test_one_group_is_the_same_as_among_others() -> None:
    groups = torch.randn(4, 900)
    search = RangeSearch(WEIGHT_PERCENTILES)
    together = percentile_search(groups, 16, search)
    for index in range(4):
        alone = percentile_search(groups[index : index + 1], 16, search)
        assert alone[1].item() == together[1][index].item()
        assert alone[0].item() == pytest.approx(together[0][index].item(), rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101, 1001])
def test_few_elements(count: int) -> None:
    groups = torch.randn(3, count, dtype=torch.float64) + 0.5
    search = RangeSearch(WEIGHT_PERCENTILES)
    scale, zero = percentile_search(groups, 16, search)
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
    search = RangeSearch(LISTS[candidates])
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
    scale_found, zero_found = percentile_search(groups, 16, search)
    assert zero_found.item() == best[1]
    assert scale_found.item() == pytest.approx(best[0], rel=1e-9)


@pytest.mark.parametrize("candidates", [WEIGHT_PERCENTILES, ACTIVATION_PERCENTILES, (0.8, 0.9)])
@pytest.mark.parametrize("shape", [(3, 5000), (40, 768), (1, 17), (5, 1)])
def test_selecting_the_tails_and_sorting_agree_bit_for_bit(
    candidates: tuple[float, ...], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = torch.randn(shape)
    groups[:, ::3] = groups[:, :1].clone()  # ties
    search = RangeSearch(candidates)
    ways = []
    for share in (0.0, 1.0):
        monkeypatch.setattr("isvit_lightning.quantizers.search._TAIL_SHARE", share)
        ways.append(percentile_search(groups, 16, search))
    assert torch.equal(ways[0][0], ways[1][0])
    assert torch.equal(ways[0][1], ways[1][1])


def test_zeros_get_the_mean_scale_of_the_others() -> None:
    groups = torch.randn(4, 500)
    groups[2] = 0
    scale, zero = percentile_search(groups, 16, RangeSearch(percentiles=(0.999,)))
    assert zero[2].item() == 0
    assert scale[2].item() == pytest.approx(scale[[0, 1, 3]].mean().item())


def test_zeros_alone_get_scale_one() -> None:
    scale, zero = percentile_search(torch.zeros(3, 20), 16, RangeSearch())
    assert scale.tolist() == [1.0, 1.0, 1.0]
    assert zero.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("include_zero", [True, False])
@pytest.mark.parametrize("value", [3.7, -0.2, 1e-6, -4e5])
def test_constant_group_spans_zero_to_its_value(value: float, include_zero: bool) -> None:
    scale, zero = percentile_search(torch.full((1, 50), value), 16, RangeSearch(include_zero=include_zero))
    assert scale.item() == pytest.approx(abs(value) / 15)
    assert zero.item() == (0 if value > 0 else 15)


@pytest.mark.parametrize("bits", range(2, 9))
def test_range_with_zero_keeps_the_zero_point_a_code(bits: int) -> None:
    shift = torch.linspace(-9, 9, 41).unsqueeze(1)
    _, zero = percentile_search(torch.randn(41, 200) + shift, 2**bits, RangeSearch())
    assert bool((zero >= 0).all())
    assert bool((zero <= 2**bits - 1).all())
    assert torch.equal(zero, zero.round())


def test_range_without_zero_is_the_published_one() -> None:
    _, zero = percentile_search(torch.randn(1, 500) + 40, 16, RangeSearch(include_zero=False))
    assert zero.item() < -15


def test_first_of_equal_candidates_wins() -> None:
    groups = torch.cat([torch.zeros(1, 600), torch.ones(1, 600)], dim=1)
    scale, zero = percentile_search(groups, 4, RangeSearch(percentiles=(0.999, 0.9)))
    assert (scale.item(), zero.item()) == (pytest.approx(1 / 3), 0.0)


@pytest.mark.parametrize(("dtype", "spread"), [(torch.float16, 1500.0), (torch.float32, 1e25)])
def test_squared_error_that_overflows_does_not_lose_the_range(dtype: torch.dtype, spread: float) -> None:
    quantizer = UniformQuantizer(4)
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
    search = RangeSearch(TOKEN_PERCENTILES, per_token=True)
    quantizer = UniformQuantizer(bits, search=search)
    quantizer.calibrate(samples)
    chosen = slow_token_error(samples, float(quantizer.scale), float(quantizer.zero_point), 2**bits)
    for percentile in TOKEN_PERCENTILES:
        single = UniformQuantizer(bits, search=RangeSearch((percentile,)))
        single.calibrate(samples)
        error = slow_token_error(samples, float(single.scale), float(single.zero_point), 2**bits)
        assert chosen <= error * (1 + 1e-5)


def test_one_enormous_token_takes_all_codes_unless_errors_count_per_token() -> None:
    samples = torch.randn(8, 50, 32)
    samples[3, 11] *= 200
    spread = {}
    for per_token in (False, True):
        quantizer = UniformQuantizer(4, search=RangeSearch(TOKEN_PERCENTILES, per_token=per_token))
        quantizer.calibrate(samples)
        spread[per_token] = float(quantizer.scale) * 15
    assert spread[False] > 100
    assert spread[True] < 20


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_samples_have_a_range_per_token_too(value: float) -> None:
    quantizer = UniformQuantizer(4, search=RangeSearch(TOKEN_PERCENTILES, per_token=True))
    quantizer.calibrate(torch.full((2, 3, 4), value))
    assert quantizer(torch.full((1, 3, 4), value)).tolist()[0][0][0] == pytest.approx(value, rel=1e-6)
    assert bool(torch.isfinite(quantizer.scale))


def test_weights_of_tokens_are_one_over_their_variance() -> None:
    samples = torch.randn(3, 5, 64, dtype=torch.float64) * torch.arange(1, 6, dtype=torch.float64).view(1, 5, 1)
    weights = token_weights(samples)
    products = weights * samples.var(dim=-1, keepdim=True, correction=0)
    assert torch.allclose(products, products[0, 0, 0].expand_as(products), rtol=2e-2)


@pytest.mark.parametrize("shape", [(1, 60_000), (7, 9_001), (300, 40)])
@pytest.mark.parametrize("per_token", [False, True])
def test_blocks_change_nothing(shape: tuple[int, int], per_token: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = torch.randn(shape, dtype=torch.float64) * torch.linspace(0.1, 4, shape[1], dtype=torch.float64)
    weights = torch.rand(shape[0], shape[1] // 20 if shape[1] % 20 == 0 else 1, dtype=torch.float64)
    found = []
    for block in (2**30, 500):
        monkeypatch.setattr(search_module, "_BLOCK", block)
        found.append(percentile_search(groups, 8, RangeSearch(), weights if per_token else None))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_outermost_values_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = torch.randn(3, 1000)
    monkeypatch.setattr(search_module, "_BLOCK", 60)
    for largest in (False, True):
        wanted = groups.sort(dim=1, descending=largest).values[:, :37]
        assert torch.equal(search_module._outermost(groups, 37, largest), wanted)
