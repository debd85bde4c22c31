"""Twin uniform grids against closed forms, and what the published ones get wrong."""

import pytest
import torch

from isvit_lightning.quantizers import Quantizer, Spec
from isvit_lightning.quantizers.formats import TwinUniform, Uniform
from isvit_lightning.search import Percentiles

EVERY_WIDTH = pytest.mark.parametrize("bits", range(2, 9))


def table(form: TwinUniform, low: float, high: float, bits: int, octaves: float) -> list[float]:
    ends = (torch.tensor([[end]], dtype=torch.float64) for end in (low, high))
    (grid,) = form.grids(*ends, 2**bits, (octaves,))
    return [float(value) for value in form.table(grid, 2**bits).flatten()]


def calibrated(form: TwinUniform | Uniform, bits: int, samples: torch.Tensor) -> Quantizer:
    quantizer = Quantizer(Spec(form, bits), Percentiles((1.0,))).double()
    quantizer.calibrate(samples)
    return quantizer


def test_the_coarse_range_begins_where_the_fine_one_ends() -> None:
    fine = [code / 71 for code in range(8)]
    assert table(TwinUniform(), 0, 1, 4, 3) == pytest.approx(fine + [7 / 71 + 8 * code / 71 for code in range(1, 9)])


def test_fine_steps_of_a_signed_one_are_those_of_negative_values() -> None:
    fine = [code / 28 for code in range(-8, 0)]
    assert table(TwinUniform(signed=True), -0.17, 1, 4, 2) == pytest.approx(fine + [code / 7 for code in range(8)])


@EVERY_WIDTH
@pytest.mark.parametrize("octaves", [0, 1, 4, 7, 12, 19])
def test_zero_and_the_largest_value_are_values(bits: int, octaves: float) -> None:
    """The published quantizer gives about the end of the fine range at 0 and more than 1 at 1."""
    unsigned, signed = (table(TwinUniform(signed), 0, 1, bits, octaves) for signed in (False, True))
    assert unsigned[0] == signed[2 ** (bits - 1)] == 0
    assert unsigned[-1] == pytest.approx(1, rel=1e-12)
    assert signed[-1] == pytest.approx(1, rel=1e-12)


@EVERY_WIDTH
def test_no_value_is_further_than_half_a_step_away(bits: int) -> None:
    samples = torch.rand(4000, dtype=torch.float64).pow(6)
    quantizer = calibrated(TwinUniform(), bits, samples)
    fine, coarse, middle = (float(number) for number in quantizer.grid)
    half = torch.where(samples < middle * fine, fine, coarse) / 2
    assert bool(((quantizer(samples) - samples).abs() <= half * (1 + 1e-9)).all())
    octaves = torch.log2(torch.tensor(coarse / fine))
    assert float(octaves) == pytest.approx(round(float(octaves)), abs=1e-6)
    assert 0 <= round(float(octaves)) <= 19


def test_it_is_at_least_as_good_as_a_uniform_grid_and_better_on_probabilities() -> None:
    samples = (torch.randn(60, 60, dtype=torch.float64) * 3).softmax(dim=-1)
    errors = [
        float((calibrated(form, 4, samples)(samples) - samples).square().mean()) for form in (TwinUniform(), Uniform())
    ]
    assert errors[0] < 0.7 * errors[1]


def test_behind_a_gelu_the_negative_side_has_finer_steps() -> None:
    samples = torch.nn.functional.gelu(torch.randn(5000, dtype=torch.float64) * 3)
    twin, uniform = calibrated(TwinUniform(signed=True), 4, samples), calibrated(Uniform(), 4, samples)
    negative = samples[samples < 0]
    assert float((twin(negative) - negative).square().mean()) < 0.1 * float(
        (uniform(negative) - negative).square().mean()
    )


def test_values_below_zero_get_the_first_code_of_an_unsigned_one() -> None:
    quantizer = calibrated(TwinUniform(), 4, torch.rand(100, dtype=torch.float64))
    assert quantizer.encode(torch.tensor([-5.0, -1e-9], dtype=torch.float64)).tolist() == [0, 0]


def test_values_without_positive_ones_are_held() -> None:
    samples = -torch.rand(100, dtype=torch.float64) - 1
    values = calibrated(TwinUniform(signed=True), 6, samples)(samples)
    assert float((values - samples).abs().max()) < 0.1
