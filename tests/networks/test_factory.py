"""Which quantizer goes where: section 1.2 of the method page, and the axes that grids of their own can lie on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantLayerNorm
from isvit_lightning.networks import Axes, LayerFactory, calibrate_activations, quantizers, switch
from isvit_lightning.quantizers import Log, PerChannel, PerTensor, Quantizer, Role, Sulq, Uniform
from isvit_lightning.recipe import Bits, Choice, Placement, Recipe, Variant, read_recipe
from isvit_lightning.recipe.placement import WEIGHT_PERCENTILES
from isvit_lightning.search import Percentiles
from isvit_lightning.search.percentiles import ACTIVATION_PERCENTILES
from tests.helpers import (
    DEFAULT_RECIPE,
    PUBLISHED_ETAS,
    image_batch,
    quantizer_of,
    relative_change,
    tiny_swin,
    tiny_vit,
)

Grain = Literal["tensor", "channel", "head", "token"]
TOKEN_PERCENTILES = (0.98, 0.99, 0.995, 0.998, *ACTIVATION_PERCENTILES)
BITS = Bits(weight=3, activation=5)
ACTIVATIONS = [
    Role.QKV_IN, Role.QUERY, Role.KEY, Role.VALUE, Role.PROJ_IN, Role.FC1_IN, Role.GELU_OUT, Role.REDUCTION_IN,
    Role.HEAD_IN, Role.OTHER,
]  # fmt: skip
PRODUCTS = (Role.QUERY, Role.KEY, Role.VALUE)


def build(recipe: Recipe = DEFAULT_RECIPE) -> LayerFactory:
    """Factory with different bits for weights (3) and activations (5)."""
    return LayerFactory(recipe.placement.build(BITS))


def activation(role: Role, recipe: Recipe = DEFAULT_RECIPE) -> Quantizer:
    """The quantizer of an input of 8 channels."""
    quantizer = build(recipe).quantizer(role, Axes(channel=PerChannel(8)))
    assert quantizer is not None
    return quantizer


@pytest.mark.parametrize("role", ACTIVATIONS, ids=str)
def test_activation_of_each_role(role: Role) -> None:
    quantizer = activation(role)
    assert quantizer.format == Uniform()
    assert quantizer.role is role
    assert (quantizer.bits, quantizer.n_codes) == (5, 32)
    per_channel = role in (Role.QKV_IN, Role.FC1_IN)
    assert quantizer.granularity == (PerChannel(8) if per_channel else PerTensor())
    plain = per_channel or role in PRODUCTS
    # What a recipe leaves open is as usual for the format.
    assert quantizer.search == (Percentiles() if plain else Percentiles(TOKEN_PERCENTILES, per_token=True))


@pytest.mark.parametrize("role", ACTIVATIONS, ids=str)
def test_errors_of_ranges_count_per_token_in_the_default_recipe_alone(role: Role) -> None:
    for name in ("repq", "round_to_nearest"):
        assert activation(role, read_recipe(name)).search == Percentiles()
    assert activation(role, read_recipe("isvit_published")).search == Percentiles(include_zero=False)


@pytest.mark.parametrize("role", ACTIVATIONS, ids=str)
def test_inputs_behind_a_norm_have_a_grid_for_each_channel_by_recipe(role: Role) -> None:
    by_channel = {
        "isvit": (Role.QKV_IN, Role.FC1_IN),
        "isvit_published": (Role.QKV_IN, Role.FC1_IN),
        "repq": (Role.QKV_IN, Role.FC1_IN, Role.REDUCTION_IN),
        "round_to_nearest": (),
    }
    for name, roles in by_channel.items():
        expected = PerChannel(8) if role in roles else PerTensor()
        assert activation(role, read_recipe(name)).granularity == expected


@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 2, 2)])
def test_weight_is_per_output_channel(shape: tuple[int, ...]) -> None:
    linear = len(shape) == 2
    layer: Any = build().linear(nn.Linear(4, 6), Role.OTHER) if linear else build().conv(nn.Conv2d(3, 6, 2), Role.IMAGE)
    quantizer = layer.weight_quantizer
    assert (quantizer.format, quantizer.bits, quantizer.role) == (Uniform(), 3, Role.WEIGHT)
    assert quantizer.search == Percentiles(WEIGHT_PERCENTILES)
    assert quantizer.scale.shape == (6, *(1 for _ in shape[1:]))
    quantizer.calibrate(layer.weight)
    assert quantizer(layer.weight).shape == shape


def test_softmax_by_recipe() -> None:
    found = {
        name: build(read_recipe(name)).context(2, 4).left_quantizer
        for name in ("isvit", "isvit_published", "repq", "round_to_nearest")
    }
    assert {name: quantizer.format for name, quantizer in found.items()} == {
        "isvit": Sulq(steps_per_octave=256),
        "isvit_published": Sulq(extra_codes=1, steps_per_octave=1),
        "repq": Log(steps_per_octave=2),
        "round_to_nearest": Uniform(),
    }
    for name, quantizer in found.items():
        assert (quantizer.role, quantizer.bits, quantizer.granularity) == (Role.ATTN_PROB, 5, PerTensor())
        assert quantizer.n_codes == (33 if name == "isvit_published" else 32)
    assert found["isvit"].search.free is None
    assert found["isvit_published"].search.free == PUBLISHED_ETAS


def test_zero_points_are_clamped_by_recipe() -> None:
    for name, clamped in (("isvit", True), ("isvit_published", False)):
        layer = build(read_recipe(name)).linear(nn.Linear(2, 2), Role.GELU_OUT)
        for quantizer in (layer.input_quantizer, layer.weight_quantizer):
            quantizer.calibrate(torch.rand(2, 2) + 5)
            assert bool((quantizer.zero_point >= 0).all()) is clamped


def test_products_have_their_roles() -> None:
    scores, context = build().scores(2, 4), build().context(2, 4)
    assert (scores.left_quantizer.role, scores.right_quantizer.role) == (Role.QUERY, Role.KEY)
    assert (context.left_quantizer.role, context.right_quantizer.role) == (Role.ATTN_PROB, Role.VALUE)


def test_the_image_stays_float_and_other_maps_do_not() -> None:
    image, other = build().conv(nn.Conv2d(3, 6, 2), Role.IMAGE), build().conv(nn.Conv2d(4, 2, 1), Role("rpn_in"))
    assert [name for name, _ in image.named_children()] == ["weight_quantizer"]
    assert other.input_quantizer is not None
    assert (other.input_quantizer.bits, other.input_quantizer.role) == (5, Role("rpn_in"))
    assert other.input_quantizer.granularity == PerTensor()
    # A convolution has no tokens whose errors could count alike.
    assert other.input_quantizer.search == Percentiles()


def test_norms_are_quantized_only_if_asked() -> None:
    norm = nn.LayerNorm(4)
    assert build().norm(norm) is norm
    placement = replace(DEFAULT_RECIPE.placement, norm_in=Choice(granularity="channel", bits=8))
    quantized = LayerFactory(placement.build(BITS)).norm(norm)
    assert isinstance(quantized, QuantLayerNorm)
    quantizer = quantized.input_quantizer
    assert (quantizer.role, quantizer.bits, quantizer.granularity) == (Role.NORM_IN, 8, PerChannel(4))


def test_a_role_of_its_own_has_its_own_bits() -> None:
    own = {"box_head_in": Variant(bits=8), "box_head_weight": Variant(bits=7)}
    factory = LayerFactory(replace(DEFAULT_RECIPE.placement, others=own).build(BITS))
    box = factory.linear(nn.Linear(4, 2), Role("box_head_in"), Role("box_head_weight", weight=True))
    assert (box.weight_quantizer.bits, box.input_quantizer.bits) == (7, 8)
    neck = factory.linear(nn.Linear(4, 2), Role("neck_in"), Role("neck_weight", weight=True))
    assert (neck.weight_quantizer.bits, neck.input_quantizer.bits) == (3, 5)
    for layer in (box, neck):
        assert layer.weight_quantizer.search == Percentiles(WEIGHT_PERCENTILES)
        assert layer.weight_quantizer.granularity == PerChannel(2, axis=-2)
    assert {role.name for role in factory.roles} == {"box_head_in", "box_head_weight", "neck_in", "neck_weight"}


def test_bits_of_a_role_lie_between_2_and_8() -> None:
    for bits in (1, 9):
        with pytest.raises(IsvitError, match=rf"bits under model\.recipe\.placement is {bits}, expected 2 to 8"):
            Choice(bits=bits)


# Grids of their own ---------------------------------------------------------------------------------------------------

BATCH, HEADS, TOKENS, CHANNELS = 3, 2, 5, 4
Product = Callable[[LayerFactory], Quantizer]
OPERANDS: dict[Role, tuple[Product, tuple[int, ...], dict[str, int]]] = {
    Role.QUERY: (
        lambda factory: factory.scores(HEADS, CHANNELS, TOKENS).left_quantizer,
        (BATCH, HEADS, TOKENS, CHANNELS),
        {"head": 1, "token": 2, "channel": 3},
    ),
    Role.KEY: (
        lambda factory: factory.scores(HEADS, CHANNELS, TOKENS).right_quantizer,
        (BATCH, HEADS, CHANNELS, TOKENS),
        {"head": 1, "token": 3, "channel": 2},
    ),
    Role.ATTN_PROB: (
        lambda factory: factory.context(HEADS, CHANNELS, TOKENS).left_quantizer,
        (BATCH, HEADS, TOKENS, TOKENS),
        {"head": 1, "token": 2},
    ),
    Role.VALUE: (
        lambda factory: factory.context(HEADS, CHANNELS, TOKENS).right_quantizer,
        (BATCH, HEADS, TOKENS, CHANNELS),
        {"head": 1, "token": 2, "channel": 3},
    ),
    Role.QKV_IN: (
        lambda factory: factory.linear(nn.Linear(CHANNELS, 2), Role.QKV_IN, tokens=TOKENS).input_quantizer,
        (BATCH, TOKENS, CHANNELS),
        {"token": 1, "channel": 2},
    ),
    Role("map_in"): (
        lambda factory: factory.conv(nn.Conv2d(CHANNELS, 2, 1), Role("map_in")).input_quantizer,
        (BATCH, CHANNELS, 3, 2),
        {"channel": 1},
    ),
    Role.NORM_IN: (
        lambda factory: factory.norm(nn.LayerNorm(CHANNELS)).input_quantizer,
        (BATCH, TOKENS, CHANNELS),
        {"channel": 2},
    ),
}
GRAINS: tuple[Grain, ...] = ("channel", "head", "token")


def with_grain(role: Role, grain: Grain) -> LayerFactory:
    """Factory whose tensors of ``role`` have a grid for each ``grain``."""
    return LayerFactory(Placement(**{role.name: Choice(granularity=grain)}).build(BITS))


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("role", OPERANDS, ids=str)
def test_each_slice_has_the_grid_that_it_would_have_alone(role: Role, grain: Grain) -> None:
    made, shape, axes = OPERANDS[role]
    if grain not in axes:
        with pytest.raises(
            IsvitError, match=rf"role {role} has no grid for each {grain}, .*granularity under .*placement\.$"
        ):
            made(with_grain(role, grain))
        return
    quantizer, axis = made(with_grain(role, grain)), axes[grain]
    assert quantizer.role == role
    scales = torch.arange(1.0, shape[axis] + 1).view(-1, *(1 for _ in shape[axis + 1 :]))
    tensor = torch.randn(shape) * scales
    quantizer.calibrate(tensor)
    assert quantizer.scale.numel() == shape[axis]
    for index in range(shape[axis]):
        alone = quantizer_of(bits=5, role=role)
        alone.calibrate(tensor.select(axis, index))
        assert quantizer.scale.flatten()[index].item() == pytest.approx(alone.scale.item())
        torch.testing.assert_close(quantizer(tensor).select(axis, index), alone(tensor.select(axis, index)))


@pytest.mark.parametrize(("network", "size"), [(tiny_vit, 16), (tiny_swin, 40)], ids=["vit", "swin"])
def test_a_network_runs_with_grids_of_their_own_everywhere(network: Any, size: int) -> None:
    model, images = network(img_size=size), image_batch(size)
    placement = Placement(
        query=Choice(granularity="head"),
        key=Choice(granularity="token"),
        value=Choice(granularity="channel"),
        attn_prob=Choice(granularity="head"),
        qkv_in=Choice(granularity="token"),
        proj_in=Choice(granularity="channel"),
        norm_in=Choice(granularity="channel"),
    )
    opened = replace(DEFAULT_RECIPE, placement=placement).open(model, Bits(8, 8))
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.walk(images))
    shapes = {(q.role.name, q.scale.shape) for q in quantizers(opened.model).values()}
    tokens, head = (5, 8) if network is tiny_vit else (16, 8)
    assert {
        ("attn_prob", (2, 1, 1)),
        ("key", (tokens,)),
        ("qkv_in", (tokens, 1)),
        ("value", (head,)),
        ("query", (2, 1, 1)),
    } <= shapes
    assert 0 < relative_change(opened.model(images), model(images)) < 0.2


def test_places_of_tokens_that_depend_on_the_image_have_no_grids() -> None:
    recipe = replace(DEFAULT_RECIPE, placement=Placement(qkv_in=Choice(granularity="token")))
    assert recipe.open(tiny_vit(), Bits()).model.blocks[0].attn.qkv.input_quantizer.granularity == PerChannel(5, -2)
    with pytest.raises(IsvitError, match="no grid for each token"):
        recipe.open(tiny_vit(dynamic_img_size=True), Bits())
