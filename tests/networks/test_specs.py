"""What a finished network is in a file, and the way back from there."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantLayerNorm
from isvit_lightning.networks import open_by_specs, quantizers, require_calibrated, specs_of
from isvit_lightning.quantizers import Log, PerTensor, Role, Spec, Uniform
from isvit_lightning.recipe import Bits, Choice, Recipe, read_recipe
from tests.helpers import DEFAULT_RECIPE, LOG_SEARCH, image_batch, quantized_network, tiny_swin, tiny_vit

FAMILY = pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
RECIPES = {
    "isvit": DEFAULT_RECIPE,
    "isvit_published": read_recipe("isvit_published"),
    "repq": read_recipe("repq"),
    "round_to_nearest": read_recipe("round_to_nearest"),
    "log2": replace(
        DEFAULT_RECIPE, placement=replace(DEFAULT_RECIPE.placement, attn_prob=Choice(Log(), search=LOG_SEARCH))
    ),
    "median": replace(DEFAULT_RECIPE, changes={"stage2": {"statistic": "median"}}),
    "norms": replace(DEFAULT_RECIPE, placement=replace(DEFAULT_RECIPE.placement, norm_in=Choice(bits=8))),
}


@FAMILY
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("folded", [True, False])
def test_a_finished_state_is_loaded_by_its_specs(
    build: Callable[..., nn.Module], size: int, name: str, folded: bool
) -> None:
    # Without biases the fold has to make some, which the opened network must have room for.
    model, images = build(qkv_bias=False, norm_layer=partial(nn.LayerNorm, bias=False)), image_batch(size)
    before = copy.deepcopy(model.state_dict())
    finished = quantized_network(model, images, recipe=RECIPES[name], folded=folded)
    state, specs = finished.model.state_dict(), specs_of(finished.model)
    opened = open_by_specs(model, specs, state)
    assert specs_of(opened.model) == specs
    assert not any(quantizer.calibrated for quantizer in quantizers(opened.model).values())
    opened.model.load_state_dict(state)
    require_calibrated(opened.model)
    assert torch.equal(opened.model(images), finished.model(images))
    assert torch.equal(opened.walk(images), finished.walk(images))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@FAMILY
def test_activations_behind_a_fold_are_per_tensor(build: Callable[..., nn.Module], size: int) -> None:
    for name in ("isvit", "repq", "round_to_nearest"):
        finished = quantized_network(build(), image_batch(size), recipe=read_recipe(name))
        for spec in specs_of(finished.model).values():
            assert spec.role.weight or spec.granularity == PerTensor()


def test_a_bias_is_made_where_the_state_holds_one_and_nowhere_else() -> None:
    model = tiny_vit(qkv_bias=False, proj_bias=False)
    finished = quantized_network(model, image_batch())
    opened = open_by_specs(model, specs_of(finished.model), finished.model.state_dict())
    for block in opened.model.blocks:
        assert isinstance(block.attn.qkv.bias, nn.Parameter)
        assert not block.attn.qkv.bias.requires_grad
        assert block.attn.qkv.bias.tolist() == [0.0] * 48
        assert block.attn.proj.bias is None
    assert model.blocks[0].attn.qkv.bias is None


def test_widths_formats_and_granularities_may_differ_from_layer_to_layer() -> None:
    model, images = tiny_vit(), image_batch()
    finished = quantized_network(model, images, Bits(4, 4))
    specs = specs_of(finished.model)
    specs["blocks.0.attn.proj.input_quantizer"] = replace(specs["blocks.0.attn.proj.input_quantizer"], bits=8)
    specs["blocks.1.attn.proj.weight_quantizer"] = replace(specs["blocks.1.attn.proj.weight_quantizer"], bits=2)
    specs["blocks.1.attn.context.left_quantizer"] = Spec(Log(), 3, PerTensor(), Role.ATTN_PROB)
    specs["head.weight_quantizer"] = replace(specs["head.weight_quantizer"], granularity=PerTensor())
    opened = open_by_specs(model, specs, finished.model.state_dict())
    assert specs_of(opened.model) == specs
    for path, quantizer in quantizers(opened.model).items():
        same = specs[path] == specs_of(finished.model)[path]
        assert {name: number.shape for name, number in quantizer.named_buffers()} == {
            name: torch.Size(specs[path].granularity.shape) for name in specs[path].format.numbers
        }
        assert same is (
            path
            not in (
                "blocks.0.attn.proj.input_quantizer",
                "blocks.1.attn.proj.weight_quantizer",
                "blocks.1.attn.context.left_quantizer",
                "head.weight_quantizer",
            )
        )
    # A quantizer that is used computes with its own width.
    quantizer = opened.model.blocks[0].attn.proj.input_quantizer
    quantizer.scale.fill_(0.5)
    quantizer.zero_point.fill_(128)
    quantizer.refresh()
    assert quantizer(torch.tensor([-1000.0, 1000.0])).tolist() == [-64.0, 63.5]


def test_norms_with_a_quantizer_are_opened_as_such() -> None:
    finished = quantized_network(tiny_vit(), image_batch(), recipe=RECIPES["norms"])
    opened = open_by_specs(tiny_vit(), specs_of(finished.model), finished.model.state_dict())
    assert all(isinstance(block.norm1, QuantLayerNorm) for block in opened.model.blocks)
    assert opened.model.blocks[0].norm1.input_quantizer.bits == 8


def lacking(specs: dict[str, Spec]) -> None:
    del specs["blocks.1.mlp.fc2.weight_quantizer"]


def of_another_layer(specs: dict[str, Spec]) -> None:
    del specs["head.input_quantizer"]
    specs["head.fc.input_quantizer"] = Spec(Uniform(), 4)


def of_another_network(specs: dict[str, Spec]) -> None:
    specs["blocks.2.mlp.fc2.weight_quantizer"] = specs["blocks.1.mlp.fc2.weight_quantizer"]


DISAGREEING = {
    "lacking": (lacking, "blocks.1.mlp.fc2.weight_quantizer"),
    "of_another_layer": (of_another_layer, "head.fc.input_quantizer"),
    "of_another_network": (of_another_network, "blocks.2.mlp.fc2.weight_quantizer"),
}


@pytest.mark.parametrize("case", DISAGREEING)
def test_specs_that_disagree_with_the_network_are_refused(case: str) -> None:
    spoil, path = DISAGREEING[case]
    opened = DEFAULT_RECIPE.open(tiny_vit(), Bits())
    specs = specs_of(opened.model)
    spoil(specs)
    with pytest.raises(IsvitError, match=rf"disagree \(first difference: {path}\), expected .* another network"):
        open_by_specs(tiny_vit(), specs, opened.model.state_dict())


def test_a_loaded_network_has_no_search_until_a_recipe_gives_it_one() -> None:
    recipe: Recipe = read_recipe("isvit_published")
    finished = quantized_network(tiny_vit(), image_batch(), recipe=recipe)
    opened = open_by_specs(tiny_vit(), specs_of(finished.model), finished.model.state_dict())
    with pytest.raises(IsvitError, match="was loaded, expected one with a search"):
        opened.model.head.input_quantizer.calibrate(torch.randn(3, 16))
    recipe.give_searches(opened.model)
    expected = quantizers(finished.model)
    assert all(quantizer.search == expected[path].search for path, quantizer in quantizers(opened.model).items())
