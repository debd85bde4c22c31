"""The adaptive logarithm against its formula in plain Python, and what its shift and its base are good for."""

import math
from dataclasses import replace

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import PerTensor, Quantizer, Spec
from isvit_lightning.quantizers.formats import AdaLog, Log
from isvit_lightning.recipe import read_recipe
from isvit_lightning.search import Percentiles

GELU_SHIFT = 0.16997124
SEARCH = Percentiles((1.0,), interpolate=False)


def calibrated(form: AdaLog | Log, bits: int, samples: torch.Tensor) -> Quantizer:
    quantizer = Quantizer(Spec(form, bits, PerTensor()), SEARCH)
    quantizer.calibrate(samples)
    return quantizer


def slow_value(x: float, scale: float, step: float, shift: float, n_codes: int) -> float:
    code = round(-math.log2(max(x + shift, 1e-38) / scale) / step)
    return scale * 2.0 ** (-step * min(max(code, 0), n_codes - 1)) - shift


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shift", [0.0, GELU_SHIFT])
def test_values_are_those_of_the_formula(bits: int, shift: float) -> None:
    x = torch.nn.functional.gelu(torch.randn(400) * 2) if shift else (torch.randn(20, 20) * 3).softmax(-1).flatten()
    quantizer = calibrated(AdaLog(shift), bits, x)
    scale, step, _ = (float(number) for number in quantizer.grid)
    expected = [slow_value(value, scale, step, shift, 2**bits) for value in x.tolist()]
    torch.testing.assert_close(quantizer(x), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_the_base_is_one_of_the_paper_and_beats_every_other() -> None:
    x = (torch.randn(40, 50) * 3).softmax(dim=-1)
    quantizer = calibrated(AdaLog(), 3, x)
    q = 37 * float(quantizer.grid[1])
    assert q == pytest.approx(round(q), abs=1e-4)
    assert 10 <= round(q) <= 138
    error = (quantizer(x) - x).square().mean()
    for other in range(10, 139):
        grid = (quantizer.grid[0], torch.tensor(other / 37), quantizer.grid[2])
        assert error <= (AdaLog().reconstruct(x, grid, 8) - x).square().mean() * (1 + 1e-6)


def test_it_is_at_least_as_good_as_log2_and_log_sqrt2() -> None:
    x = (torch.randn(40, 50) * 3).softmax(dim=-1)
    error = (calibrated(AdaLog(), 3, x)(x) - x).square().mean()
    for steps in (1, 2):
        assert error <= (calibrated(Log(steps), 3, x)(x) - x).square().mean()


def test_the_shift_makes_room_for_the_negative_values_of_a_gelu() -> None:
    x = torch.nn.functional.gelu(torch.randn(2000) * 2)
    shifted = calibrated(AdaLog(GELU_SHIFT), 4, x)
    assert (shifted(x) < 0).any()
    assert (shifted(x) - x).square().mean() < (calibrated(AdaLog(), 4, x)(x) - x).square().mean()


def test_a_search_can_keep_to_log2_of_the_shifted_values() -> None:
    """The shift-log2 format of ADFQ-ViT (arXiv 2407.02763), with a smallest value that does not hang on the batch."""
    x = torch.nn.functional.gelu(torch.randn(2000) * 2)
    quantizer = Quantizer(Spec(AdaLog(GELU_SHIFT), 4), replace(SEARCH, free=(1.0,)))
    quantizer.calibrate(x)
    shifted = Quantizer(Spec(Log(), 4), SEARCH)
    shifted.calibrate(x + GELU_SHIFT)
    torch.testing.assert_close(quantizer(x), shifted((x + GELU_SHIFT).clamp_min(0)) - GELU_SHIFT, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quantizer(x[:5]), quantizer(x)[:5])


def test_a_bias_can_take_the_shift_over() -> None:
    x, weight = torch.nn.functional.gelu(torch.randn(7, 30)), torch.randn(5, 30)
    quantizer = calibrated(AdaLog(GELU_SHIFT), 4, x)
    base = quantizer.format.base(quantizer.encode(x).float(), quantizer.grid)
    folded = base @ weight.T - GELU_SHIFT * weight.sum(dim=1)
    torch.testing.assert_close(folded, quantizer(x) @ weight.T, rtol=1e-4, atol=1e-4)


def test_a_negative_shift_is_refused() -> None:
    with pytest.raises(IsvitError, match="shift_by"):
        AdaLog(-0.1)


def test_the_recipe_places_it_on_attention_and_gelu_alone() -> None:
    placement = read_recipe("adalog").placement
    assert placement.attn_prob.format == AdaLog()
    assert placement.gelu_out.format == AdaLog(GELU_SHIFT)
    assert not isinstance(placement.proj_in.format, AdaLog)
