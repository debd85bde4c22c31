"""The ViT adapter against timm's own forward pass; unit and quantizer counts; refusals."""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import LayerNorm, LayerNormFp32, Mlp, RmsNorm, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import open_float, quantizers, switch
from isvit_lightning.networks.vit import VitAdapter
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe import Bits
from isvit_lightning.stages.trainables import trainable_parameters
from tests.helpers import (
    DEFAULT_RECIPE,
    double_precision,
    image_batch,
    quantized_network,
    relative_change,
    tiny_vit,
)
from tests.networks.rotating import rotate_heads, rotate_stream

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "qk_norm": {"qk_norm": True},
    "layer_scale": {"init_values": 1e-5},
    "other_patch_size": {"patch_size": 4},
    "oblong_image_and_patch": {"img_size": (16, 24), "patch_size": (8, 4)},
    "average_pooling": {"global_pool": "avg"},
    "no_class_token": {"class_token": False, "global_pool": "avg"},
    "max_pooling_without_fc_norm": {"global_pool": "max", "fc_norm": False},
    "registers": {"reg_tokens": 3},
    "positions_without_class": {"no_embed_class": True, "reg_tokens": 2},
    "no_positions": {"pos_embed": "none"},
    "pre_norm": {"pre_norm": True},
    "no_final_norm": {"final_norm": False},
    "scale_norms": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "no_biases": {"qkv_bias": False, "proj_bias": False},
    "token_logits": {"global_pool": ""},
    "dynamic_image_size": {"dynamic_img_size": True},
    "norms_without_affine_part": {"norm_layer": partial(LayerNorm, affine=False)},
    "norms_without_bias": {"norm_layer": partial(nn.LayerNorm, bias=False, eps=1e-6), "qk_norm": True},
    "norms_in_float32": {"norm_layer": LayerNormFp32},
    "dino": {"init_values": 1.0, "reg_tokens": 4, "no_embed_class": True, "dynamic_img_size": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_switched_off_is_the_float_network(variant: str) -> None:
    model = tiny_vit(**VARIANTS[variant])
    images = image_batch(model.patch_embed.img_size)
    expected = model(images)
    opened = DEFAULT_RECIPE.open(model, Bits())
    switch(opened.model, weights=False, activations=False)
    torch.testing.assert_close(opened.model(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(opened.walk(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_walk_is_the_forward_pass(variant: str) -> None:
    model = tiny_vit(**VARIANTS[variant])
    images = image_batch(model.patch_embed.img_size)
    opened = quantized_network(model, images)
    assert torch.equal(opened.walk(images), opened.model(images))
    assert not torch.allclose(opened.model(images), model(images), atol=1e-4)
    assert torch.equal(open_float(model).walk(images), model(images))


def test_walk_takes_another_image_size_where_the_network_does() -> None:
    model = tiny_vit(dynamic_img_size=True)
    images = image_batch((24, 32))
    assert torch.equal(open_float(model).walk(images), model(images))


def test_walk_pads_the_image_where_the_network_does() -> None:
    model = tiny_vit(dynamic_img_size=True, dynamic_img_pad=True)
    images = image_batch((18, 21))
    opened = DEFAULT_RECIPE.open(model, Bits())
    switch(opened.model, weights=False, activations=False)
    torch.testing.assert_close(open_float(model).walk(images), model(images))
    torch.testing.assert_close(opened.walk(images), opened.model(images))


@pytest.mark.parametrize(
    "arguments", [{"is_causal": True}, {"attn_mask": torch.eye(5).bool() | torch.ones(5, 5).tril().bool()}]
)
def test_masks_pass_through_the_network(arguments: dict[str, Any]) -> None:
    model, images = tiny_vit(), image_batch()
    opened = DEFAULT_RECIPE.open(model, Bits())
    switch(opened.model, weights=False, activations=False)
    expected = model(images, **arguments)
    torch.testing.assert_close(opened.model(images, **arguments), expected, rtol=1e-4, atol=1e-5)


def test_deit_tiny_has_14_units_and_97_plus_50_quantizers() -> None:
    opened = DEFAULT_RECIPE.open(timm.create_model("deit_tiny_patch16_224.fb_in1k", pretrained=False), Bits())
    assert [unit.name for unit in opened.units] == [
        "patch_embed.proj",
        *(f"blocks.{index}" for index in range(12)),
        "head",
    ]
    roles = Counter(quantizer.role for quantizer in quantizers(opened.model).values())
    assert roles.pop(Role.WEIGHT) == 50
    assert sum(roles.values()) == 97
    assert roles.pop(Role.HEAD_IN) == 1
    assert set(roles.values()) == {12}
    assert len(roles) == 8
    assert [wire.name for wire in opened.wires[:2]] == ["blocks.0.attn.qkv", "blocks.0.mlp.fc1"]
    assert len(opened.wires) == 24


@pytest.mark.parametrize("opener", ["float", "quantized"])
def test_units_are_the_modules_that_their_names_say(opener: str) -> None:
    model = tiny_vit()
    opened = open_float(model) if opener == "float" else DEFAULT_RECIPE.open(model, Bits())
    assert [unit.name for unit in opened.units] == ["patch_embed.proj", "blocks.0", "blocks.1", "head"]
    for unit in opened.units:
        assert unit.module is opened.model.get_submodule(unit.name)


@pytest.mark.parametrize("opener", ["float", "quantized"])
def test_wires_are_the_modules_that_their_names_say(opener: str) -> None:
    model = tiny_vit()
    opened = open_float(model) if opener == "float" else DEFAULT_RECIPE.open(model, Bits())
    assert len(opened.wires) == 4
    for wire in opened.wires:
        (reader,) = wire.readers
        assert reader is opened.model.get_submodule(wire.name)
        assert wire.unit == wire.name.rsplit(".", 2)[0]
        norm = "norm1" if wire.name.endswith("qkv") else "norm2"
        assert wire.norm is opened.model.get_submodule(f"{wire.unit}.{norm}")
        assert wire.pad_value is None


ROTATED: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "plain": ({}, True, True),
    "no_biases": ({"qkv_bias": False}, True, True),
    "query_and_key_norms": ({"qk_norm": True}, False, True),
    "norm_before_the_projection": ({"scale_attn_norm": True}, True, False),
}


@pytest.mark.parametrize("case", ROTATED)
def test_heads_can_be_rotated_where_no_norm_stands_in_the_way(case: str) -> None:
    arguments, scores, values = ROTATED[case]
    with double_precision():
        model, images = tiny_vit(**arguments), image_batch()
        expected, heads = model(images), VitAdapter(model).heads()
        assert [(each.name, each.count) for each in heads] == [("blocks.0.attn", 2), ("blocks.1.attn", 2)]
        assert all((each.rotates_scores, each.rotates_values) == (scores, values) for each in heads)
        rotate_heads(heads)
        assert relative_change(model(images), expected) < 1e-12
        # What is said to stand in the way does.
        rotate_heads([replace(each, rotates_scores=True, rotates_values=True) for each in heads])
        assert (relative_change(model(images), expected) < 1e-12) is (scores and values)


STREAMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer_scale": {"init_values": 0.5},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "average_pooling": {"global_pool": "avg"},
    "no_class_token_and_no_positions": {"class_token": False, "global_pool": "avg", "pos_embed": "none"},
    "no_biases": {"qkv_bias": False, "proj_bias": False},
}


@pytest.mark.parametrize("case", STREAMS)
def test_the_stream_can_be_rotated(case: str) -> None:
    """Only if every writer, offset and reader is told of."""
    with double_precision():
        model, images = tiny_vit(**STREAMS[case]), image_batch()
        expected, stream = model(images), VitAdapter(model).stream()
        assert (stream.channels, len(stream.writers), len(stream.wires)) == (16, 5, 5)
        rotate_stream(stream)
        assert relative_change(model(images), expected) < 1e-12


@pytest.mark.parametrize("arguments", [{"pre_norm": True}, {"final_norm": False}])
def test_a_stream_that_no_rotation_passes_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(IsvitError, match="residual stream .* passes norms"):
        VitAdapter(tiny_vit(**arguments)).stream()


def test_a_block_trains_eight_tensors_and_no_norm() -> None:
    opened = DEFAULT_RECIPE.open(tiny_vit(init_values=1e-5, qk_norm=True), Bits())
    counts = [len(trainable_parameters(unit.module)) for unit in opened.units]
    assert counts == [2, 8, 8, 2]
    block = opened.units[1].module
    names = {name for name, p in block.named_parameters() if any(p is t for t in trainable_parameters(block))}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_parameters_keep_their_names_and_values() -> None:
    model = tiny_vit()
    opened = DEFAULT_RECIPE.open(model, Bits())
    parameters = dict(opened.model.named_parameters())
    assert parameters.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(parameters[name], value) for name, value in model.named_parameters())


def test_roles_do_not_depend_on_module_names() -> None:
    opened = DEFAULT_RECIPE.open(tiny_vit(), Bits())
    block = opened.model.blocks[0]
    assert block.attn.qkv.input_quantizer.role == Role.QKV_IN
    assert block.attn.proj.input_quantizer.role == Role.PROJ_IN
    assert block.mlp.fc1.input_quantizer.role == Role.FC1_IN
    assert block.mlp.fc2.input_quantizer.role == Role.GELU_OUT
    assert opened.model.head.input_quantizer.role == Role.HEAD_IN


def test_distilled_deit_is_refused_by_name() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", depth=1, embed_dim=12)
    for opener in (open_float, lambda m: DEFAULT_RECIPE.open(m, Bits())):
        with pytest.raises(IsvitError, match="VisionTransformerDistilled"):
            opener(model)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "attention_pooling": ({"global_pool": "map"}, "attn_pool"),
    "swiglu": ({"mlp_layer": SwiGLUPacked}, r"blocks\.0\.mlp: it is a GluMlp, supported is Mlp"),
    "rms_norm": ({"norm_layer": RmsNorm}, r"blocks\.0\.norm1: it is a RmsNorm"),
    "other_block": ({"block_fn": ParallelScalingBlock}, r"blocks\.0: it is a ParallelScalingBlock"),
    "no_head": ({"num_classes": 0}, "head: it is a Identity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_module(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(IsvitError, match=message):
        open_float(tiny_vit(**arguments))


def test_other_attention_is_refused_by_name() -> None:
    model = tiny_vit(attn_layer="diff")
    with pytest.raises(IsvitError, match=r"blocks\.0\.attn: it is a DiffAttention"):
        DEFAULT_RECIPE.open(model, Bits())


def test_one_odd_block_is_found() -> None:
    model = tiny_vit()
    model.blocks[1].mlp = SwiGLUPacked(16, 64)
    with pytest.raises(IsvitError, match=r"blocks\.1\.mlp"):
        DEFAULT_RECIPE.open(model, Bits())
    model.blocks[1].mlp = Mlp(16, 64)
    DEFAULT_RECIPE.open(model, Bits())


def test_subclass_with_another_head_is_refused() -> None:
    """Units call forward_head: a network with another one, such as timm's with two heads, would be opened wrongly."""

    class Other(VisionTransformer):
        def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
            return -super().forward_head(x, pre_logits)

    small = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    for model in (Other(**small), VisionTransformerDistilled(**small)):
        with pytest.raises(IsvitError, match=rf"{type(model).__name__}: its forward_head differs .*, expected"):
            open_float(model)
