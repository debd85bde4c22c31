"""Beam search against all candidates of a fine grid."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantLinear, QuantMatMul
from isvit_lightning.quantizers import AdaLog, Format, Log, PerChannel, Quantizer, Site, Spec, Uniform, per_head
from isvit_lightning.search import Beam, OutputError
from isvit_lightning.search.layer_error import LayerError

with torch.random.fork_rng():
    torch.manual_seed(0)
    LINEAR = QuantLinear(nn.Linear(12, 8).requires_grad_(False), None, None)
SKEWED = torch.randn(4, 9, 12, generator=torch.Generator().manual_seed(0)).pow(3).clamp(min=-4)
GELU = torch.nn.functional.gelu(torch.randn(4, 9, 12, generator=torch.Generator().manual_seed(2)) * 3)


def measured(site: Site, spec: Spec, grid: Any) -> float:
    return float(LayerError(spec, site)(tuple(number.view(-1, 1) for number in grid)).sum())


@pytest.mark.parametrize(("form", "samples"), [(Uniform(), SKEWED), (AdaLog(0.16997124), GELU)])
@pytest.mark.parametrize("bits", [3, 4])
def test_it_comes_close_to_the_best_of_a_fine_grid(form: Format, samples: torch.Tensor, bits: int) -> None:
    site, spec = Site(samples, LINEAR, "input", LINEAR.weight), Spec(form, bits)
    shares = torch.linspace(0.1, 1.0, 37).tolist()
    lows = shares if isinstance(form, Uniform) else [1.0]
    errors = [
        measured(site, spec, grid)
        for low, high in product(lows, shares)
        for grid in form.grids(samples.min().view(1, 1) * low, samples.max().view(1, 1) * high, 2**bits, form.free[::3])
    ]
    found = measured(site, spec, Beam(points=16).choose(spec, site))
    assert found < 1.03 * min(errors)
    # One share for both ends, and for AdaLog each base with the whole range, are special cases.
    assert found <= 1.001 * measured(site, spec, OutputError((0.1, 1.0), 37, form.free[::8]).choose(spec, site))


def test_refining_helps_and_a_wider_beam_does_not_harm() -> None:
    site, spec = Site(SKEWED, LINEAR, "input", LINEAR.weight), Spec(Uniform(), 4)
    errors = [
        measured(site, spec, search.choose(spec, site))
        for search in (Beam(points=3, steps=0), Beam(points=3, steps=4, width=1), Beam(points=3, steps=4, width=16))
    ]
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] <= errors[1] * (1 + 1e-6)


def test_each_group_has_a_beam_of_its_own() -> None:
    probabilities = (torch.randn(2, 3, 9, 9) * torch.tensor([1.0, 4.0, 12.0]).view(3, 1, 1)).softmax(-1)
    values = torch.randn(2, 3, 9, 4)
    matmul = QuantMatMul(None, None)
    spec, search = Spec(AdaLog(), 3, per_head(3)), Beam(points=5, width=4)
    found = search.choose(spec, Site(probabilities, matmul, "left", values))
    assert len(set(found[1].flatten().tolist())) == 3
    for head in range(3):
        one = Site(probabilities[:, head : head + 1], matmul, "left", values[:, head : head + 1])
        alone = search.choose(Spec(AdaLog(), 3), one)
        for mine, single in zip(found, alone, strict=True):
            torch.testing.assert_close(mine.flatten()[head], single)


def test_rows_of_a_weight_have_a_grid_each() -> None:
    spec = Spec(Uniform(), 3, PerChannel(8, -2))
    site = Site(LINEAR.weight, LINEAR, "weight", SKEWED)
    quantizer = Quantizer(spec, Beam(points=4, width=4, steps=2))
    quantizer.calibrate(site)
    assert quantizer.scale.shape == (8, 1)
    assert bool(((quantizer.zero_point >= 0) & (quantizer.zero_point <= 7)).all())
    assert measured(site, spec, quantizer.grid) <= 1.02 * measured(
        site, spec, OutputError((0.1, 1.0), 37).choose(spec, site)
    )


def test_what_makes_no_difference_is_not_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    call = LayerError.__call__

    def spy(self: LayerError, grid: Any) -> torch.Tensor:
        calls.append(1)
        return call(self, grid)

    monkeypatch.setattr(LayerError, "__call__", spy)
    for form, samples, axes in ((Log(), GELU.abs(), 1), (Uniform(), SKEWED.abs(), 1), (Uniform(), SKEWED, 2)):
        calls.clear()
        Beam(points=5, width=3, steps=2).choose(Spec(form, 4), Site(samples))
        assert len(calls) == 5**axes + 2 * 3 * (3**axes - 1)


@pytest.mark.parametrize("value", [0.0, 1e-30, 3e38])
def test_a_constant_has_a_finite_grid(value: float) -> None:
    for form in (Uniform(), AdaLog()):
        quantizer = Quantizer(Spec(form, 4), Beam(points=3, steps=1))
        quantizer.calibrate(Site(torch.full((2, 3, 12), value), LINEAR, "input", LINEAR.weight))
        assert quantizer.calibrated


@pytest.mark.parametrize(
    "given", [{"points": 1}, {"smallest": 0.0}, {"smallest": 1.0}, {"width": 0}, {"steps": -1}, {"images": 0}]
)
def test_numbers_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(IsvitError, match=r"under model\.recipe\.placement"):
        Beam(**given)
