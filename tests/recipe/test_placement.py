"""Each tensor gets the quantizer of its role: format, width, granularity and search."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantLayerNorm
from isvit_lightning.networks import Axes, LayerFactory, open_quantized, quantizers
from isvit_lightning.quantizers import Log, PerChannel, PerTensor, Quantizer, Role, Spec, Sulq, Uniform
from isvit_lightning.recipe import Bits, Choice, Placement, Variant, read_recipe
from isvit_lightning.recipe.placement import WEIGHT_PERCENTILES
from isvit_lightning.search import Percentiles
from tests.helpers import image_batch, tiny_swin, tiny_vit

BITS = Bits(3, 5)
ROLES = {entry.name for entry in fields(Placement)} - {"others", "linear_in", "map_in"}


def opened(placement: Placement, model: nn.Module | None = None, bits: Bits = BITS) -> dict[str, Quantizer]:
    return quantizers(open_quantized(model or tiny_vit(depth=1), placement.build(bits)).model)


def by_role(found: dict[str, Quantizer]) -> dict[str, Quantizer]:
    """One quantizer of each role, all of which must have the same spec but for the size of an axis."""
    kinds: dict[str, Quantizer] = {}
    for quantizer in found.values():
        first = kinds.setdefault(quantizer.role.name, quantizer)
        assert (first.format, first.bits, first.search) == (quantizer.format, quantizer.bits, quantizer.search)
        assert type(first.granularity) is type(quantizer.granularity)
    return kinds


@pytest.mark.parametrize("build", [tiny_vit, tiny_swin], ids=["vit", "swin"])
def test_widths_are_those_of_weights_and_activations(build: Callable[[], nn.Module]) -> None:
    for quantizer in opened(Placement(), build()).values():
        assert quantizer.bits == (3 if quantizer.role.weight else 5)


def test_by_default_everything_that_a_product_reads_is_quantized_but_the_image() -> None:
    kinds = by_role(opened(Placement(), tiny_swin()))
    assert kinds.keys() == ROLES - {"image", "norm_in"}
    for name, quantizer in kinds.items():
        assert quantizer.format == Uniform()
        assert isinstance(quantizer.granularity, PerChannel if name == "weight" else PerTensor)
        assert quantizer.search == (Percentiles(WEIGHT_PERCENTILES) if name == "weight" else Percentiles())


@pytest.mark.parametrize("name", sorted(ROLES))
def test_a_choice_is_that_of_its_role_alone(name: str) -> None:
    choice = Choice(Uniform(), bits=7, granularity="tensor", search=Percentiles((0.75,)))
    before, after = (by_role(opened(p, tiny_swin())) for p in (Placement(), replace(Placement(), **{name: choice})))
    assert after[name].spec == Spec(Uniform(), 7, PerTensor(), Role(name, weight=name == "weight"))
    assert after[name].search == choice.search
    for other in before.keys() - {name}:
        assert (after[other].format, after[other].bits, after[other].search) == (
            before[other].format,
            before[other].bits,
            before[other].search,
        )


@pytest.mark.parametrize("name", sorted(ROLES - {"image", "norm_in"}))
def test_no_format_leaves_the_role_float(name: str) -> None:
    float_choice: Any = {name: Choice(format=None)}
    found = opened(replace(Placement(), **float_choice), tiny_swin())
    assert by_role(found).keys() == ROLES - {"image", "norm_in", name}


def test_inputs_of_norms_are_quantized_where_that_is_asked_for() -> None:
    placement = Placement(norm_in=Choice(granularity="channel", bits=8))
    model = open_quantized(tiny_vit(), placement.build(BITS)).model
    norms = [module for module in model.modules() if isinstance(module, QuantLayerNorm)]
    assert len(norms) == 4
    assert all(norm.input_quantizer.spec == Spec(Uniform(), 8, PerChannel(16), Role.NORM_IN) for norm in norms)


@pytest.mark.parametrize(
    ("name", "granularity", "expected"),
    [
        ("qkv_in", "channel", PerChannel(16)),
        ("qkv_in", "token", PerChannel(5, axis=-2)),
        ("fc1_in", "channel", PerChannel(16)),
        ("gelu_out", "channel", PerChannel(64)),
        ("proj_in", "token", PerChannel(5, axis=-2)),
        ("head_in", "channel", PerChannel(16)),
        ("query", "head", PerChannel(2, axis=-3)),
        ("query", "channel", PerChannel(8)),
        ("query", "token", PerChannel(5, axis=-2)),
        ("key", "head", PerChannel(2, axis=-3)),
        ("key", "channel", PerChannel(8, axis=-2)),
        ("key", "token", PerChannel(5, axis=-1)),
        ("attn_prob", "head", PerChannel(2, axis=-3)),
        ("attn_prob", "token", PerChannel(5, axis=-2)),
        ("value", "head", PerChannel(2, axis=-3)),
        ("value", "channel", PerChannel(8)),
        ("image", "channel", PerChannel(3, axis=-3)),
        ("norm_in", "channel", PerChannel(16)),
    ],
)
def test_granularities_are_axes_of_the_tensor(name: str, granularity: Any, expected: PerChannel) -> None:
    placement = replace(Placement(), **{name: Choice(granularity=granularity)})
    model = open_quantized(tiny_vit(depth=1), placement.build(BITS)).model
    found = [quantizer for quantizer in quantizers(model).values() if quantizer.role.name == name]
    assert found
    assert all(quantizer.granularity == expected for quantizer in found)
    # Each of these tensors really has an axis of this size there.
    shapes: list[torch.Size] = []
    for quantizer in found:
        quantizer.enabled = False
        quantizer.register_forward_pre_hook(lambda _module, args: shapes.append(args[0].shape))
    for quantizer in quantizers(model).values():
        quantizer.enabled = False
    model(image_batch(16))
    assert shapes
    assert all(shape[expected.axis] == expected.size for shape in shapes)


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        ("qkv_in", "head"),
        ("weight", "head"),
        ("weight", "token"),
        ("attn_prob", "channel"),
        ("head_in", "token"),
        ("head_in", "head"),
        ("image", "token"),
        ("norm_in", "head"),
    ],
)
def test_a_granularity_that_a_tensor_does_not_have_is_refused(name: str, granularity: Any) -> None:
    told = rf"role {name} has no grid for each {granularity}, expected .*tensor: change its granularity .*placement\.$"
    with pytest.raises(IsvitError, match=told):
        opened(replace(Placement(), **{name: Choice(granularity=granularity)}))


def test_a_network_of_any_length_has_no_grid_by_token() -> None:
    with pytest.raises(IsvitError, match="role qkv_in has no grid for each token"):
        opened(Placement(qkv_in=Choice(granularity="token")), tiny_vit(dynamic_img_size=True))


@pytest.mark.parametrize("bits", [1, 9, 0, 4.0, True])
def test_widths_outside_2_to_8_are_refused(bits: Any) -> None:
    with pytest.raises(IsvitError, match=rf"placement is {bits}, expected 2 to 8"):
        Choice(bits=bits)
    with pytest.raises(IsvitError, match=rf"placement\.others is {bits}, expected 2 to 8"):
        Variant(bits=bits)


def test_roles_of_an_adapter_go_by_kind_of_layer_or_by_name() -> None:
    placement = Placement(
        linear_in=Choice(bits=2),
        map_in=Choice(bits=6),
        weight=Choice(granularity="channel", bits=7),
        others={"named_in": Variant(Sulq(), bits=8), "named_weight": Variant(bits=4)},
    )
    factory = LayerFactory(placement.build(BITS))
    conv, linear = nn.Conv2d(3, 4, 2), nn.Linear(3, 4)
    layers = [
        factory.conv(conv, Role("neck_in"), Role("neck_weight", weight=True)),
        factory.linear(linear, Role("neck_in"), Role("neck_weight", weight=True)),
        factory.conv(conv, Role("named_in"), Role("named_weight", weight=True)),
        factory.linear(linear, Role("named_in"), Role("named_weight", weight=True)),
    ]
    widths = [(layer.input_quantizer.bits, layer.weight_quantizer.bits) for layer in layers]  # type: ignore[union-attr]
    assert widths == [(6, 7), (2, 7), (8, 4), (8, 4)]
    assert layers[2].input_quantizer.format == Sulq().at(8)  # type: ignore[union-attr]


GENERAL = {
    "linear_in": Choice(Log(), "channel", 3, Percentiles((0.7,))),
    "map_in": Choice(Uniform(), "tensor", None, Percentiles((0.8,))),
    "weight": Choice(Uniform(), "channel", 5, Percentiles((0.9,))),
}


@pytest.mark.parametrize("general", GENERAL)
@pytest.mark.parametrize(
    "different",
    [
        {},
        {"format": Sulq()},
        {"granularity": "token"},
        {"bits": 8},
        {"search": Percentiles((0.6,))},
        {"format": Uniform(), "granularity": "tensor", "bits": 2, "search": Percentiles()},
    ],
    ids=["nothing", "format", "granularity", "bits", "search", "all"],
)
def test_a_role_of_an_adapter_differs_only_where_that_is_said(general: str, different: dict[str, Any]) -> None:
    placement = Placement(**GENERAL, others={"own": Variant(**different)})
    found = placement.of(Role("own", weight=general == "weight"), is_map=general == "map_in")
    assert found == replace(GENERAL[general], **different)


def test_a_role_of_an_adapter_may_stay_float() -> None:
    placement = Placement(others={"own": Variant(Sulq(), bits=8, is_float=True)})
    assert placement.of(Role("own")).format is None
    assert placement.build(BITS)(Role("own"), Axes()) is None
    assert placement.build(BITS)(Role("other"), Axes()) is not None


@pytest.mark.parametrize("name", ["gelu_out", "weight", "linear_in", "others"])
def test_a_role_that_has_a_section_is_refused_beside_it(name: str) -> None:
    with pytest.raises(
        IsvitError, match=rf"others names {name}, expected .*: change model\.recipe\.placement\.{name}\.$"
    ):
        Placement(others={"aaa": Variant(), name: Variant(bits=6)})


def test_the_fallbacks_are_no_roles() -> None:
    placement = Placement(linear_in=Choice(bits=2), map_in=Choice(bits=3), others={})
    for name in ("linear_in", "map_in", "others"):
        assert placement.of(Role(name)).bits == 2
        assert placement.of(Role(name), is_map=True).bits == 3
    assert placement.of(Role("own", weight=True)) == placement.weight


def test_roles_that_are_known_pass() -> None:
    placement = Placement(others={"a": Variant(), "b": Variant()})
    placement.require_known([Role("a"), Role("b"), Role("c")])
    with pytest.raises(
        IsvitError, match=r"no tensor of the role b, expected one of a, c: change .*placement\.others\."
    ):
        placement.require_known([Role("a"), Role("c")])


def test_the_granularity_of_a_fallback_names_no_option_that_does_not_exist() -> None:
    build = Placement(linear_in=Choice(granularity="head")).build(BITS)
    told = r"role neck_in has no grid for each head, .*: change its granularity under model\.recipe\.placement\.$"
    with pytest.raises(IsvitError, match=told):
        build(Role("neck_in"), Axes(PerChannel(3)))


@pytest.mark.parametrize(
    ("name", "form"),
    [("isvit", Sulq().at(5)), ("repq", Log(2)), ("round_to_nearest", Uniform()), ("isvit_published", Sulq(1, 1))],
)
def test_recipes_give_probabilities_their_format(name: str, form: Any) -> None:
    kinds = by_role(opened(read_recipe(name).placement))
    assert kinds["attn_prob"].format == form
    assert kinds["attn_prob"].n_codes == 2**5 + getattr(form, "extra_codes", 0)
    by_channel = {kind for kind, quantizer in kinds.items() if quantizer.granularity != PerTensor()}
    assert by_channel == {"weight"} | ({"qkv_in", "fc1_in"} if name != "round_to_nearest" else set())
