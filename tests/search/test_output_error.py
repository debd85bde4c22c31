"""Search by the error of the output: the best of all shares, and what it weighs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantLinear, QuantMatMul
from isvit_lightning.quantizers import AdaLog, PerChannel, Quantizer, Site, Spec, TwinUniform, Uniform, per_head
from isvit_lightning.search import OutputError, Percentiles

with torch.random.fork_rng():
    torch.manual_seed(0)
    LINEAR = QuantLinear(nn.Linear(12, 8).requires_grad_(False), None, None)
TOKENS = torch.randn(4, 9, 12, generator=torch.Generator().manual_seed(0)).pow(3)


def error_of(site: Site, spec: Spec, grid: Any) -> float:
    values = spec.format.reconstruct(site.samples, grid, spec.n_codes)
    return float((site.output(values) - site.output(site.samples)).square().mean())


@pytest.mark.parametrize("bits", [2, 4])
def test_it_finds_the_best_share_of_the_range(bits: int) -> None:
    site, spec = Site(TOKENS, LINEAR, "input", LINEAR.weight), Spec(Uniform(), bits)
    found = OutputError(candidates=40).choose(spec, site)
    errors = []
    for share in torch.linspace(0.01, 1.2, 40).tolist():
        ends = (TOKENS.min().view(1, 1) * share, TOKENS.max().view(1, 1) * share)
        (grid,) = Uniform().grids(*ends, 2**bits, (0.0,))
        errors.append(error_of(site, spec, tuple(number.view(()) for number in grid)))
    assert error_of(site, spec, found) == pytest.approx(min(errors), rel=1e-4)
    assert min(errors) < 0.95 * errors[-1]


def test_the_output_counts_and_not_the_tensor() -> None:
    """Channels that the layer multiplies by zero may be clipped."""
    layer = QuantLinear(nn.Linear(12, 8).requires_grad_(False), None, None)
    layer.weight[:, 6:] = 0
    tokens = torch.randn(4, 9, 12)
    tokens[..., 6:] *= 50
    site, spec = Site(tokens, layer, "input", layer.weight), Spec(Uniform(), 4)
    by_output, by_tensor = OutputError().choose(spec, site), OutputError().choose(spec, Site(tokens))
    assert float(by_output[0]) < 0.2 * float(by_tensor[0])


def test_outputs_with_large_gradients_decide() -> None:
    layer = QuantLinear(nn.Linear(12, 2, bias=False).requires_grad_(False), None, None)
    layer.weight[:] = 0
    layer.weight[0, :6] = layer.weight[1, 6:] = 1
    tokens = torch.randn(4, 9, 12)
    tokens[..., 6:] *= 50
    spec = Spec(Uniform(), 4)
    scales = []
    for gradient in ((1.0, 0.0), (0.0, 1.0)):
        gradients = torch.tensor(gradient).expand(4, 9, 2)
        site = Site(tokens, layer, "input", layer.weight, gradients)
        scales.append(float(OutputError(by_gradients=True).choose(spec, site)[0]))
    assert scales[0] < 0.2 * scales[1]


def test_the_largest_errors_alone_want_a_wider_range() -> None:
    samples = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).pow(3)
    all_of_them, few = (
        float(OutputError(counted=counted).choose(Spec(Uniform(), 3), Site(samples))[0]) for counted in (1.0, 1e-3)
    )
    assert few > 1.5 * all_of_them


def test_the_other_operand_is_taken_on_its_grid() -> None:
    """A weight that is twice too large on its grid wants half the input."""
    site = Site(TOKENS.abs(), LINEAR, "input", LINEAR.weight, quantized=2 * LINEAR.weight)
    alone = replace(site, quantized=None)
    scales = [float(OutputError().choose(Spec(Uniform(), 6), one)[0]) for one in (site, alone)]
    assert scales[0] < 0.8 * scales[1]


def test_each_head_and_each_row_of_a_weight_is_chosen_alone() -> None:
    left, right = (torch.randn(2, 3, 7, 5) * 3).pow(3), torch.randn(2, 3, 5, 4)
    product = QuantMatMul(None, None)
    spec = Spec(Uniform(), 3, per_head(3))
    found = OutputError(candidates=30).choose(spec, Site(left, product, "left", right))
    assert found[0].shape == (3, 1, 1)
    for head in range(3):
        one = Site(left[:, head : head + 1], product, "left", right[:, head : head + 1])
        alone = OutputError(candidates=30).choose(Spec(Uniform(), 3), one)
        torch.testing.assert_close(found[0].flatten()[head], alone[0])
    spec = Spec(Uniform(), 3, PerChannel(8, -2))
    found = OutputError(candidates=30).choose(spec, Site(LINEAR.weight, LINEAR, "weight", TOKENS))
    for row in range(8):
        single = Site(LINEAR.weight[row : row + 1], LINEAR, "weight", TOKENS)
        alone = OutputError(candidates=30).choose(Spec(Uniform(), 3), single)
        torch.testing.assert_close(found[0][row, 0], alone[0])


@pytest.mark.parametrize("form", [AdaLog(), TwinUniform()])
def test_what_a_range_leaves_open_is_tried_with_the_whole_range(form: AdaLog | TwinUniform) -> None:
    probabilities, values = (torch.randn(2, 3, 9, 9) * 3).softmax(-1), torch.randn(2, 3, 9, 4)
    site, spec = Site(probabilities, QuantMatMul(None, None), "left", values), Spec(form, 3)
    found = OutputError(shares=(1.0, 1.0), candidates=1).choose(spec, site)
    errors = [
        error_of(site, spec, tuple(number.view(()) for number in grid))
        for grid in form.grids(torch.zeros(1, 1), probabilities.max().view(1, 1), 8, form.free)
    ]
    assert error_of(site, spec, found) == pytest.approx(min(errors), rel=1e-4)
    some = OutputError(shares=(1.0, 1.0), candidates=1, free=form.free[:2]).choose(spec, site)
    assert error_of(site, spec, some) == pytest.approx(min(errors[:2]), rel=1e-4)


def test_as_many_levels_are_measured_as_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    reconstruct = TwinUniform.reconstruct

    def spy(self: TwinUniform, tensor: torch.Tensor, grid: Any, n_codes: int) -> torch.Tensor:
        counts.append(n_codes)
        return reconstruct(self, tensor, grid, n_codes)

    monkeypatch.setattr(TwinUniform, "reconstruct", spy)
    quantizer = Quantizer(Spec(TwinUniform(signed=True), 3), OutputError(candidates=3))
    quantizer.calibrate(Site(TOKENS, LINEAR, "input", LINEAR.weight))
    assert set(counts) == {quantizer.n_codes} == {8}
    assert quantizer(TOKENS).unique().numel() <= 8


@pytest.mark.parametrize("value", [0.0, 1e-30, 3e38])
def test_a_constant_has_a_finite_grid(value: float) -> None:
    for form in (Uniform(), TwinUniform(), AdaLog()):
        quantizer = Quantizer(Spec(form, 4), OutputError(candidates=5))
        quantizer.calibrate(Site(torch.full((2, 3, 12), value), LINEAR, "input", LINEAR.weight))
        assert quantizer.calibrated


@pytest.mark.parametrize(
    "given", [{"shares": (0.0, 1.0)}, {"shares": (1.0, 0.5)}, {"candidates": 0}, {"counted": 0.0}, {"free": ()}]
)
def test_numbers_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(IsvitError, match=r"change search under model\.recipe\.placement"):
        OutputError(**given)


def test_no_images_are_refused() -> None:
    with pytest.raises(IsvitError, match="looks at 0 images"):
        OutputError(images=0)


def test_it_says_what_it_wants_to_see() -> None:
    assert OutputError().sees_output
    assert not OutputError().sees_gradients
    assert OutputError(by_gradients=True).sees_gradients
    assert not Percentiles().sees_output
