"""The logarithm of a shifted value: where its values lie, and what it is good for."""

import itertools
import math

import pytest
import torch

from isvit_lightning.quantizers import Format, Quantizer, ShiftedLog, Spec, Uniform
from isvit_lightning.search import Percentiles

LOW, HIGH = torch.tensor([[-0.17]]), torch.tensor([[3.0]])


def calibrated(form: Format, bits: int, samples: torch.Tensor) -> Quantizer:
    quantizer = Quantizer(Spec(form, bits), Percentiles((0.999, 1.0), include_zero=False))
    quantizer.calibrate(samples)
    return quantizer


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("ratio", ShiftedLog.free)
def test_the_outermost_values_are_the_ends_of_the_range(bits: int, ratio: float) -> None:
    (grid,) = ShiftedLog().grids(LOW, HIGH, 2**bits, (ratio,))
    values = ShiftedLog().table(grid, 2**bits).flatten()
    # The lower end is rounded to a 255th of the scale.
    scale = float(grid[0])
    assert float(values[0]) == pytest.approx(3.0, abs=1e-5)
    assert float(values[-1]) == pytest.approx(-0.17, abs=scale / 510 + 1e-4)
    shifted = values + grid[2].flatten()
    assert float(shifted[-1] / shifted[0]) == pytest.approx(ratio, abs=1 / 510 + 1e-6)


@pytest.mark.parametrize("ratio", [0.5, 0.125, 2.0**-5])
def test_codes_of_4_bits_have_values_of_their_own_in_255ths(ratio: float) -> None:
    (grid,) = ShiftedLog().grids(LOW, HIGH, 16, (ratio,))
    integers = (ShiftedLog().table(grid, 16) + grid[2]) * 255 / grid[0]
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)
    expected = [round(255 * ratio ** (code / 15)) for code in range(16)]
    assert integers.round().flatten().tolist() == expected
    assert len(set(expected)) == 16


def test_neighbours_keep_their_ratio_as_far_as_255ths_allow() -> None:
    (grid,) = ShiftedLog().grids(LOW, HIGH, 8, (2.0**-3.5,))
    shifted = (ShiftedLog().table(grid, 8) + grid[2]).flatten()
    assert [math.log2(a / b) for a, b in itertools.pairwise(shifted.tolist())] == pytest.approx([0.5] * 7, abs=0.05)


@pytest.mark.parametrize("bits", [3, 4])
def test_outputs_of_a_gelu_lose_less_than_on_a_uniform_grid(bits: int) -> None:
    x = torch.nn.functional.gelu(torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 1.5 - 1)
    errors = [float((calibrated(form, bits, x)(x) - x).square().mean()) for form in (ShiftedLog(), Uniform())]
    assert errors[0] < 0.75 * errors[1]
