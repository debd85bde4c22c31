"""The tangent compander: its ends, its limits, and the angle that the search finds."""

import math

import pytest
import torch

from isvit_lightning.quantizers import Quantizer, Spec
from isvit_lightning.quantizers.formats import Log, Tangent, Uniform
from isvit_lightning.search import Percentiles


def table(angle: float, bits: int = 4, high: float = 1.0) -> torch.Tensor:
    end = torch.tensor([[high]], dtype=torch.float64)
    (grid,) = Tangent().grids(torch.zeros_like(end), end, 2**bits, (angle,))
    return Tangent().table(grid, 2**bits).flatten()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("angle", [Tangent.free[0], math.pi / 4, Tangent.free[-1]])
def test_values_are_tangents_of_equal_parts_of_the_angle(bits: int, angle: float) -> None:
    last = 2**bits - 1
    expected = [3 * math.tan(angle * code / last) / math.tan(angle) for code in range(last + 1)]
    found = table(angle, bits, 3.0)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert float(found[0]) == 0
    assert float(found[-1]) == pytest.approx(3, rel=1e-12)


def test_a_small_angle_is_a_uniform_grid() -> None:
    torch.testing.assert_close(table(1e-4), torch.arange(16, dtype=torch.float64) / 15, rtol=1e-6, atol=0)


def test_steps_grow_with_the_value_and_with_the_angle() -> None:
    for angle in Tangent.free:
        assert bool((table(angle).diff().diff() > 0).all())
    firsts = [float(table(angle)[1]) for angle in Tangent.free]
    assert firsts == sorted(firsts, reverse=True)


def test_it_is_finer_than_a_logarithm_near_the_largest_value_unless_the_angle_is_nearly_right() -> None:
    grid = (torch.tensor([[1.0]], dtype=torch.float64),)
    for angle in Tangent.free[:-2]:
        assert float(table(angle)[-2]) > float(Log().table(grid, 16)[1])


def test_the_search_finds_the_best_angle() -> None:
    samples = (torch.randn(50, 50, dtype=torch.float64) * 3).softmax(dim=-1)
    errors = {}
    for form in (Tangent(), Uniform()):
        quantizer = Quantizer(Spec(form, 4), Percentiles((1.0,))).double()
        quantizer.calibrate(samples)
        errors[form] = float((quantizer(samples) - samples).square().mean())
    best = min(
        float((Tangent().reconstruct(samples, grid, 16) - samples).square().mean())
        for angle in Tangent.free
        for grid in Tangent().grids(torch.zeros(1, 1), samples.max().view(1, 1), 16, (angle,))
    )
    assert errors[Tangent()] == pytest.approx(best)
    assert errors[Tangent()] < 0.7 * errors[Uniform()]
