"""What a search sees of the place of a quantizer, and the sentence for one that wants more."""

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantConv2d, QuantLinear, QuantMatMul
from isvit_lightning.quantizers import Layer, Search, Site
from isvit_lightning.search import Percentiles


def test_defaults_know_nothing_but_the_samples() -> None:
    site = Site(torch.rand(3))
    assert (site.layer, site.operand, site.partner, site.gradients) == (None, "input", None, None)
    assert site.channels_last


LINEAR, CONV, PRODUCT = (
    QuantLinear(nn.Linear(6, 4), None, None),
    QuantConv2d(nn.Conv2d(6, 4, 3), None, None),
    QuantMatMul(None, None),
)


@pytest.mark.parametrize(
    ("layer", "operand", "expected"),
    [
        (LINEAR, "input", True),
        (LINEAR, "weight", True),
        (CONV, "input", False),
        (CONV, "weight", True),
        (PRODUCT, "left", False),
        (PRODUCT, "right", False),
    ],
)
def test_channels_lie_last_in_inputs_of_linear_layers_and_in_weights(
    layer: Layer, operand: str, expected: bool
) -> None:
    assert Site(torch.rand(2, 6), layer, operand).channels_last is expected  # type: ignore[arg-type]


def test_output_puts_values_in_the_place_of_the_samples() -> None:
    tokens, maps = torch.randn(2, 5, 6), torch.randn(2, 6, 7, 7)
    left, right = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4, 5)
    linear, conv = LINEAR.weight.detach(), CONV.weight.detach()
    cases = [
        (Site(tokens, LINEAR, "input", linear), tokens @ linear.T),
        (Site(linear, LINEAR, "weight", tokens), tokens @ linear.T),
        (Site(maps, CONV, "input", conv), nn.functional.conv2d(maps, conv)),
        (Site(conv, CONV, "weight", maps), nn.functional.conv2d(maps, conv)),
        (Site(left, PRODUCT, "left", right), left @ right),
        (Site(right, PRODUCT, "right", left), left @ right),
    ]
    for site, expected in cases:
        torch.testing.assert_close(site.output(site.samples), expected)
        # Linear in the values, whatever they are: no bias, no quantizer.
        torch.testing.assert_close(site.output(site.samples * -2), expected * -2)


def test_output_takes_the_other_operand_on_its_grid_where_it_has_one() -> None:
    tokens, weight = torch.randn(2, 5, 6), torch.randn(4, 6)
    site = Site(tokens, LINEAR, "input", weight, quantized=weight.round())
    torch.testing.assert_close(site.output(tokens), tokens @ weight.T)
    torch.testing.assert_close(site.output(tokens, quantized=True), tokens @ weight.round().T)
    alone = Site(tokens, LINEAR, "input", weight)
    torch.testing.assert_close(alone.output(tokens, quantized=True), tokens @ weight.T)
    assert site.has_output
    assert not Site(tokens, LINEAR).has_output


@pytest.mark.parametrize(
    "site",
    [
        Site(torch.rand(2, 6)),
        Site(torch.rand(2, 6), LINEAR),
        Site(torch.rand(2, 6), partner=torch.rand(4, 6)),
    ],
)
def test_an_output_that_is_not_known_is_told_in_a_sentence(site: Site) -> None:
    sentence = (
        r"wants the output of a layer where none is known, expected .* change search under model\.recipe\.placement"
    )
    with pytest.raises(IsvitError, match=sentence):
        site.output(site.samples)


def test_gradients_are_handed_on() -> None:
    gradients = torch.rand(2, 6)
    assert Site(torch.rand(2, 6), gradients=gradients).require_gradients() is gradients


def test_gradients_that_are_not_known_are_told_in_a_sentence() -> None:
    sentence = r"wants gradients where none can be had, expected .* change search under model\.recipe\.placement"
    with pytest.raises(IsvitError, match=sentence):
        Site(torch.rand(2, 6), LINEAR, "input", torch.rand(4, 6)).require_gradients()


def test_a_search_looks_at_the_tensor_alone_unless_it_says_so() -> None:
    assert (Percentiles().sees_output, Percentiles().sees_gradients) == (False, False)


def test_a_search_says_how_it_chooses() -> None:
    with pytest.raises(TypeError, match="choose"):
        Search()  # type: ignore[abstract]
