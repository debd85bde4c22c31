"""Errors of a layer's output against loops over groups."""

from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantConv2d, QuantLinear, QuantMatMul
from isvit_lightning.quantizers import (
    Granularity,
    Grid,
    Operand,
    PerChannel,
    PerTensor,
    Site,
    Spec,
    Uniform,
    per_head,
)
from isvit_lightning.search.layer_error import LayerError

LINEAR = QuantLinear(nn.Linear(6, 4).double(), None, None)
CONV = QuantConv2d(nn.Conv2d(6, 4, 3, padding=1).double(), None, None)
PRODUCT = QuantMatMul(None, None)
TOKENS, MAPS = torch.randn(3, 5, 6).double(), torch.randn(3, 6, 7, 7).double()
LEFT, RIGHT = torch.randn(3, 2, 5, 4).double(), torch.randn(3, 2, 4, 5).double()
SITES: dict[str, tuple[Site, dict[Granularity, int | None]]] = {
    "input": (Site(TOKENS, LINEAR, "input", LINEAR.weight), {PerTensor(): None, PerChannel(5, -2): -2}),
    "weight": (Site(LINEAR.weight, LINEAR, "weight", TOKENS), {PerTensor(): None, PerChannel(4, -2): -1}),
    "map": (Site(MAPS, CONV, "input", CONV.weight), {PerTensor(): None}),
    "filter": (Site(CONV.weight, CONV, "weight", MAPS), {PerTensor(): None, PerChannel(4, -4): -3}),
    "left": (Site(LEFT, PRODUCT, "left", RIGHT), {PerTensor(): None, per_head(2): -3, PerChannel(5, -2): -2}),
    "right": (Site(RIGHT, PRODUCT, "right", LEFT), {PerTensor(): None, per_head(2): -3, PerChannel(5, -1): -1}),
}
"""Operands of layers, and where in the output the groups of a granularity lie."""
CASES = [(name, granularity, axis) for name, (_, axes) in SITES.items() for granularity, axis in axes.items()]


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def grid_for(spec: Spec, samples: torch.Tensor) -> Grid:
    groups = spec.granularity.group(samples)
    (grid,) = Uniform().grids(groups.amin(1, keepdim=True), groups.amax(1, keepdim=True), spec.n_codes, (0.0,))
    return grid


def outputs(site: Site, grid: Grid, spec: Spec, partner: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output with the samples as they are, and with samples and partner quantized."""
    values = Uniform().reconstruct(
        site.samples, tuple(number.reshape(spec.granularity.shape) for number in grid), spec.n_codes
    )
    layer: Any = site.layer
    return (
        layer.product(site.operand, site.samples, site.partner),
        layer.product(site.operand, values, partner),
    )


@pytest.mark.parametrize(("name", "granularity", "axis"), CASES)
@pytest.mark.parametrize("by_gradients", [False, True])
def test_the_error_of_each_group_is_that_of_its_outputs(
    name: str, granularity: Granularity, axis: int | None, by_gradients: bool
) -> None:
    site, _ = SITES[name]
    assert site.partner is not None
    rounded = (site.partner * 4).round() / 4
    gradients = torch.randn_like(site.output(site.samples))
    site = Site(site.samples, site.layer, site.operand, site.partner, gradients, rounded)
    spec = Spec(Uniform(), 3, granularity)
    grid = grid_for(spec, site.samples)
    target, output = outputs(site, grid, spec, rounded)
    errors = ((output - target) / target.abs().max()).square()
    if by_gradients:
        errors = errors * (gradients / gradients.abs().max()).square()
    expected = (
        errors.mean().view(1)
        if axis is None
        else torch.stack([errors.select(axis, index).mean() for index in range(errors.shape[axis])])
    )
    torch.testing.assert_close(LayerError(spec, site, by_gradients=by_gradients)(grid), expected)


def operand_alone(samples: torch.Tensor, granularity: Granularity, operand: Operand, layer: Any, partner: Any) -> None:
    """The error is in proportion to that of the output with one group quantized alone, with the same factor for all."""
    spec = Spec(Uniform(), 3, granularity)
    site = Site(samples, layer, operand, partner)
    error = LayerError(spec, site)
    grid = grid_for(spec, samples)
    halved = tuple(number / 2 for number in grid)
    shaped = [tuple(n.reshape(granularity.shape) for n in numbers) for numbers in (grid, halved)]
    for index in range(granularity.shape[0]):
        changes = []
        for numbers in shaped:
            values = samples.clone()
            axis = granularity.axis  # type: ignore[union-attr]
            quantized = Uniform().reconstruct(samples, numbers, 8)
            values.select(axis, index).copy_(quantized.select(axis, index))
            changes.append((site.output(values) - site.output(samples)).square().sum())
        found = error(grid)[index] / error(halved)[index]
        torch.testing.assert_close(found, changes[0] / changes[1])


def test_channels_that_a_product_sums_over_are_measured_alone() -> None:
    operand_alone(TOKENS, PerChannel(6), "input", LINEAR, LINEAR.weight)
    one = LEFT[:1, :1], RIGHT[:1, :1]
    for left, right in ((one[0], torch.ones(1, 1, 4, 5).double()), one):
        # Rows of the other operand weigh the same for each candidate where there is one product.
        operand_alone(left, PerChannel(4), "left", PRODUCT, right)
    operand_alone(one[1], PerChannel(4, -2), "right", PRODUCT, one[0])


def test_the_tensor_stands_for_an_output_that_is_not_known() -> None:
    spec = Spec(Uniform(), 3)
    grid = grid_for(spec, TOKENS)
    expected = (Uniform().reconstruct(TOKENS, tuple(n.reshape(()) for n in grid), 8) - TOKENS) / TOKENS.abs().max()
    for site in (Site(TOKENS), Site(TOKENS, LINEAR)):
        torch.testing.assert_close(LayerError(spec, site, by_gradients=True)(grid), expected.square().mean().view(1))


@pytest.mark.parametrize("counted", [1e-6, 0.1, 0.5])
def test_small_errors_are_dropped(counted: float) -> None:
    site, _ = SITES["left"]
    spec = Spec(Uniform(), 3, per_head(2))
    grid = grid_for(spec, site.samples)
    assert site.partner is not None
    target, output = outputs(site, grid, spec, site.partner)
    errors = per_head(2).group(((output - target) / target.abs().max()).square())
    kept = max(1, round(counted * errors.shape[1]))
    expected = errors.sort(dim=1, descending=True).values[:, :kept].mean(dim=1)
    torch.testing.assert_close(LayerError(spec, site, counted=counted)(grid), expected)


@pytest.mark.parametrize("name", SITES)
def test_a_part_of_the_batch_is_that_part_alone(name: str) -> None:
    site, _ = SITES[name]
    assert site.partner is not None
    gradients = torch.randn_like(site.output(site.samples))
    spec = Spec(Uniform(), 3)
    grid = grid_for(spec, site.samples)
    whole = Site(site.samples, site.layer, site.operand, site.partner, gradients, site.partner * 1.1)
    samples = site.samples if name in ("weight", "filter") else site.samples[::2]
    partner = site.partner if name in ("input", "map") else site.partner[::2]
    part = Site(samples, site.layer, site.operand, partner, gradients[::2], partner * 1.1)
    found = LayerError(spec, whole, images=2, by_gradients=True)(grid)
    torch.testing.assert_close(found, LayerError(spec, part, by_gradients=True)(grid), rtol=1e-12, atol=0)
    assert float(found) != pytest.approx(float(LayerError(spec, whole, by_gradients=True)(grid)), rel=1e-6)


def test_half_precision_and_tiny_values_are_measured() -> None:
    spec = Spec(Uniform(), 3)
    for scale, dtype in ((1e-30, torch.float32), (200.0, torch.float16)):
        samples, weight = (TOKENS * scale).to(dtype), LINEAR.weight.to(dtype)
        error = LayerError(spec, Site(samples, LINEAR, "input", weight))(grid_for(spec, samples.float()))
        assert float(error) == pytest.approx(
            float(LayerError(spec, SITES["input"][0])(grid_for(spec, TOKENS))), rel=0.02
        )


def test_gradients_that_are_missing_are_told() -> None:
    with pytest.raises(IsvitError, match="wants gradients where none can be had"):
        LayerError(Spec(Uniform(), 3), SITES["input"][0], by_gradients=True)
