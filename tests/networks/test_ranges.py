"""Choosing ranges from one forward pass, upstream quantizers first."""

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantConv2d, QuantLinear, QuantMatMul
from isvit_lightning.networks import (
    calibrate_activations,
    calibrate_ranges,
    calibrate_weights,
    quantizers,
    switch,
)
from isvit_lightning.quantizers import Grid, PerChannel, Role, Search, Site, Spec
from isvit_lightning.recipe import Bits
from isvit_lightning.search import Percentiles
from tests.helpers import DEFAULT_RECIPE, image_batch, quantizer_of, tiny_swin, tiny_vit


def chain() -> nn.Sequential:
    """Two quantized layers in a row, the weights switched off."""
    layers = [
        QuantLinear(
            nn.Linear(4, 4), quantizer_of(bits=2), quantizer_of(granularity=PerChannel(4, axis=-2), role=Role.WEIGHT)
        )
        for _ in range(2)
    ]
    network = nn.Sequential(*layers)
    switch(network, weights=False, activations=True)
    return network


def test_a_quantizer_sees_what_those_before_it_have_quantized() -> None:
    network, tensor = chain(), torch.randn(200, 4)
    calibrate_activations(network, lambda: network(tensor))
    first, second = network[0].input_quantizer, quantizer_of(bits=2)
    second.calibrate(nn.functional.linear(first(tensor), network[0].weight, network[0].bias))
    unquantized = quantizer_of(bits=2)
    unquantized.calibrate(nn.functional.linear(tensor, network[0].weight, network[0].bias))
    assert network[1].input_quantizer.scale.item() == second.scale.item() != unquantized.scale.item()


def test_activations_alone_are_calibrated() -> None:
    network = chain()
    calibrate_activations(network, lambda: network(torch.randn(50, 4)))
    for quantizer in quantizers(network).values():
        assert quantizer.calibrated is not quantizer.role.weight


def test_switched_off_quantizers_are_left_alone() -> None:
    network = chain()
    network[1].input_quantizer.enabled = False
    calibrate_activations(network, lambda: network(torch.randn(50, 4)))
    assert network[0].input_quantizer.calibrated
    assert not network[1].input_quantizer.calibrated


def test_ranges_that_exist_are_chosen_anew() -> None:
    network, tensor = chain(), torch.randn(50, 4)
    calibrate_activations(network, lambda: network(tensor))
    before = network[0].input_quantizer.scale.item()
    calibrate_activations(network, lambda: network(10 * tensor))
    assert network[0].input_quantizer.scale.item() == pytest.approx(10 * before)


def test_nothing_is_chosen_after_the_call() -> None:
    network = chain()
    calibrate_activations(network, lambda: network(torch.randn(50, 4)))
    before = network[0].input_quantizer.scale.clone()
    network(100 * torch.randn(50, 4))
    assert torch.equal(network[0].input_quantizer.scale, before)


def test_nothing_is_chosen_after_a_failed_call() -> None:
    network = chain()
    with pytest.raises(IsvitError, match="NaN or infinity"):
        calibrate_activations(network, lambda: network(torch.full((2, 4), torch.nan)))
    with pytest.raises(IsvitError, match="before it was calibrated"):
        network(torch.randn(50, 4))


def test_calibration_computes_no_gradients() -> None:
    network = chain()
    outputs: list[torch.Tensor] = []
    calibrate_activations(network, lambda: outputs.append(network(torch.randn(50, 4))))
    assert not outputs[0].requires_grad


@pytest.mark.parametrize("family", [tiny_vit, tiny_swin])
def test_weights_are_calibrated_from_themselves(family: type) -> None:
    opened = DEFAULT_RECIPE.open(family(), Bits(weight=3))
    calibrate_weights(opened.model)
    for name, quantizer in quantizers(opened.model).items():
        assert quantizer.calibrated is quantizer.role.weight
        if not quantizer.role.weight:
            continue
        weight = opened.model.get_parameter(name.removesuffix("_quantizer"))
        assert quantizer.granularity == PerChannel(weight.shape[0], axis=-weight.dim())
        for row in range(weight.shape[0]):
            alone = quantizer_of(bits=3, role=Role.WEIGHT, search=quantizer.search)
            alone.calibrate(weight[row])
            assert quantizer.scale[row].item() == pytest.approx(alone.scale.item(), rel=1e-6)
            assert quantizer.zero_point[row].item() == alone.zero_point.item()


def test_weights_are_calibrated_again_when_they_changed() -> None:
    network = chain()
    calibrate_weights(network)
    before = network[0].weight_quantizer.scale.clone()
    with torch.no_grad():
        network[0].weight.mul_(2)
    calibrate_weights(network)
    torch.testing.assert_close(network[0].weight_quantizer.scale, 2 * before)


def test_one_layer_is_calibrated_alone() -> None:
    layer = chain()[0]
    calibrate_weights(layer)
    assert layer.weight_quantizer.calibrated


@pytest.mark.parametrize(("family", "size"), [(tiny_vit, 16), (tiny_swin, 40)])
def test_every_activation_of_a_network_is_reached_by_walk_and_by_forward(family: type, size: int) -> None:
    model, images = family(**({"img_size": size} if size == 40 else {})), image_batch(size)
    by_walk, by_forward = (DEFAULT_RECIPE.open(model, Bits()) for _ in range(2))
    for opened in (by_walk, by_forward):
        switch(opened.model, weights=False, activations=True)
    calibrate_activations(by_walk.model, lambda: by_walk.walk(images))
    calibrate_activations(by_forward.model, lambda: by_forward.model(images))
    state = by_forward.model.state_dict()
    for key, value in by_walk.model.state_dict().items():
        assert "weight_quantizer" in key or (bool(value.isfinite().all()) and torch.equal(value, state[key]))


class Levels(nn.Module):
    """One layer for maps of several sizes, as the region proposals of a detector, and one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = chain()

    def forward(self, levels: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.last(self.shared(level)) for level in levels]


def test_a_layer_that_is_met_several_times_chooses_from_all_it_meets() -> None:
    network, levels = Levels(), [torch.randn(30, 4) * 5, torch.randn(3, 7, 4), torch.randn(2, 4) * 0.1]
    passes = []
    calibrate_activations(network, lambda: passes.append(network(levels)))
    assert len(passes) == 2
    for layer in (network.shared, network.last):
        assert layer.input_quantizer.enabled
        assert layer.input_quantizer.calibrated
    expected = quantizer_of(bits=2)
    expected.calibrate(torch.cat([level.flatten() for level in levels]))
    assert network.shared.input_quantizer.scale.item() == expected.scale.item()
    # The second layer sees what the first one, switched off for the while, does not quantize.
    shared = network.shared
    behind = [nn.functional.linear(level, shared.weight, shared.bias).flatten() for level in levels]
    expected.calibrate(torch.cat(behind))
    assert network.last.input_quantizer.scale.item() == pytest.approx(expected.scale.item())


def test_one_pass_is_enough_where_no_layer_is_shared() -> None:
    network, passes = chain(), []
    calibrate_activations(network, lambda: passes.append(network(torch.randn(50, 4))))
    assert len(passes) == 1


class Noted(Search):
    """A search that remembers what it was shown."""

    def __init__(self) -> None:
        self.sites: list[Site] = []

    def choose(self, spec: Spec, site: Site) -> Grid:
        self.sites.append(site)
        return Percentiles().choose(spec, site)


def test_a_search_is_told_the_layer_the_operand_and_the_other_operand() -> None:
    opened = DEFAULT_RECIPE.open(tiny_vit(depth=1), Bits())
    noted = {path: Noted() for path in quantizers(opened.model)}
    for path, quantizer in quantizers(opened.model).items():
        quantizer.search = noted[path]
    block, calls = opened.model.blocks[0], {}
    for name in ("scores", "context"):
        getattr(block.attn, name).register_forward_pre_hook(lambda module, args: calls.update({module: args}))
    switch(opened.model, weights=True, activations=True)
    calibrate_weights(opened.model)
    calibrate_activations(opened.model, lambda: opened.walk(image_batch()))
    assert all(len(search.sites) == 1 for search in noted.values())
    for path, search in noted.items():
        (site,) = search.sites
        layer = opened.model.get_submodule(path.rpartition(".")[0])
        operand = path.rpartition(".")[2].removesuffix("_quantizer")
        assert (site.layer, site.operand) == (layer, operand)
        if operand == "weight":
            assert site.samples is layer.weight
            assert site.partner is None
        elif operand == "input":
            assert site.partner is layer.weight
            assert torch.equal(site.output(site.samples), nn.functional.linear(site.samples, layer.weight))
        else:
            left, right = calls[layer]
            assert site.samples is (left if operand == "left" else right)
            assert site.partner is (right if operand == "left" else left)
            assert torch.equal(site.output(site.samples), left @ right)


def test_the_layer_of_a_map_has_its_channels_elsewhere() -> None:
    noted = Noted()
    layer = QuantConv2d(nn.Conv2d(3, 2, 2), quantizer_of(search=noted), None)
    maps = torch.randn(2, 3, 4, 4)
    calibrate_activations(layer, lambda: layer(maps))
    (site,) = noted.sites
    assert not site.channels_last
    assert torch.equal(site.output(maps), nn.functional.conv2d(maps, layer.weight))


def test_operands_of_finished_products_are_let_go() -> None:
    opened = DEFAULT_RECIPE.open(tiny_vit(depth=3), Bits(4, 4))
    switch(opened.model, weights=False, activations=True)
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    for product in (module for module in opened.model.modules() if isinstance(module, QuantMatMul)):
        product.register_forward_pre_hook(lambda _module, args: seen.extend(map(weakref.ref, args)))
    opened.model.head.register_forward_pre_hook(
        lambda _module, _args: alive.append(sum(one() is not None for one in seen))
    )
    calibrate_activations(opened.model, lambda: opened.walk(image_batch()))
    assert len(seen) == 12
    assert alive == [0]


class Looking(Noted):
    """One that looks at outputs, too."""

    sees_output = True


def looking(sites: dict[str, Looking]) -> Any:
    """A block with such searches; those of weights look at what their layer reads."""
    opened = DEFAULT_RECIPE.open(tiny_vit(depth=1), Bits(4, 4))
    for path, quantizer in quantizers(opened.model).items():
        quantizer.search = sites[path] = Looking()
    return opened


def test_a_weight_comes_before_the_input_of_its_layer_and_both_are_seen_on_their_grids_in_the_next_round() -> None:
    sites: dict[str, Looking] = {}
    opened, images = looking(sites), image_batch()
    gradients: dict[nn.Module, torch.Tensor] = {opened.model.head: torch.rand(3, 5)}
    for _ in range(2):
        calibrate_ranges(opened.model, lambda: opened.walk(images), gradients=gradients)
    head = opened.model.head
    weight, features = sites["head.weight_quantizer"].sites, sites["head.input_quantizer"].sites
    assert len(weight) == len(features) == 2
    assert [site.operand for site in (*weight, *features)] == ["weight", "weight", "input", "input"]
    assert weight[0].partner is features[0].samples
    # Nothing has a grid yet but the weight, when the input comes.
    assert weight[0].quantized is None
    assert torch.equal(features[0].quantized, head.weight_quantizer(head.weight))
    assert weight[1].quantized.unique().numel() <= 16
    assert weight[1].quantized.shape == weight[1].partner.shape
    assert all(site.gradients is gradients[head] for site in (*weight, *features))
    left, right = (sites[f"blocks.0.attn.scores.{side}_quantizer"].sites for side in ("left", "right"))
    assert [site.quantized is None for site in (*left, *right)] == [True, False, False, False]
    assert left[0].gradients is None


def test_a_pass_is_spared_where_no_search_of_a_weight_looks_at_outputs() -> None:
    network, passes = chain(), []
    calibrate_ranges(network, lambda: passes.append(1), activations=False)
    assert passes == []
    assert all(layer.weight_quantizer.calibrated for layer in network)
    network[0].weight_quantizer.search = Looking()
    switch(network, weights=True, activations=False)
    calibrate_ranges(network, lambda: passes.append(network(torch.rand(9, 4))), activations=False)
    assert len(passes) == 1
    assert not network[0].input_quantizer.calibrated


def test_the_weight_of_a_shared_layer_is_chosen_at_its_first_call() -> None:
    network, levels = Levels(), [torch.randn(30, 4), torch.randn(3, 7, 4)]
    search = network.shared.weight_quantizer.search = Looking()
    switch(network, weights=True, activations=True)
    calibrate_weights(network.last)
    calibrate_ranges(network, lambda: network(levels))
    assert [site.partner is levels[0] for site in search.sites] == [True]
    assert network.shared.input_quantizer.calibrated
