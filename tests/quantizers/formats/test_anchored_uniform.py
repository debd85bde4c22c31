"""A linear grid that is anchored at the largest value."""

import pytest
import torch

from isvit_lightning.quantizers import Quantizer, Spec, per_head
from isvit_lightning.quantizers.formats import AnchoredUniform, Uniform
from isvit_lightning.search import Percentiles


@pytest.mark.parametrize("bits", range(2, 9))
def test_values_are_equal_steps_between_the_free_share_and_the_top(bits: int) -> None:
    low, high = torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64)
    for share in AnchoredUniform.free:
        (grid,) = AnchoredUniform().grids(low, high, 2**bits, (share,))
        found = AnchoredUniform().table(grid, 2**bits).flatten()
        expected = torch.linspace(3, -1 + 4 * share, 2**bits, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert float(found[0]) == 3


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_maximum_of_each_head_is_exact(bits: int) -> None:
    samples = (torch.randn(4, 3, 30, 30) * torch.tensor([1.0, 3.0, 9.0]).view(3, 1, 1)).softmax(dim=-1)
    quantizer = Quantizer(Spec(AnchoredUniform(), bits, per_head(3)), Percentiles((1.0,)))
    quantizer.calibrate(samples)
    highest = samples.amax(dim=(0, 2, 3))
    assert torch.equal(quantizer(samples).amax(dim=(0, 2, 3)), highest)


def test_the_lower_end_rises_where_that_makes_the_error_smaller() -> None:
    samples = 0.4 + 0.6 * torch.rand(3000, dtype=torch.float64)
    errors = []
    for form in (AnchoredUniform(), Uniform()):
        quantizer = Quantizer(Spec(form, 3), Percentiles((1.0,))).double()
        quantizer.calibrate(samples)
        errors.append(float((quantizer(samples) - samples).square().mean()))
    assert errors[0] < 0.6 * errors[1]
