"""The ViT adapter against timm's own forward pass; unit and quantizer counts; refusals."""

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from timm.layers import Mlp, RmsNorm, SwiGLUPacked
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import open_float, open_quantized, quantizers, switch
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe.method import Bits, Method
from isvit_lightning.stages.tuning import trainable_parameters
from tests.helpers import image_batch, quantized_network, tiny_vit

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
    "dino": {"init_values": 1.0, "reg_tokens": 4, "no_embed_class": True, "dynamic_img_size": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_switched_off_is_the_float_network(variant: str) -> None:
    model = tiny_vit(**VARIANTS[variant])
    images = image_batch(model.patch_embed.img_size)
    expected = model(images)
    opened = open_quantized(model, Bits(), Method())
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
    opened = open_quantized(model, Bits(), Method())
    switch(opened.model, weights=False, activations=False)
    torch.testing.assert_close(open_float(model).walk(images), model(images))
    torch.testing.assert_close(opened.walk(images), opened.model(images))


@pytest.mark.parametrize(
    "arguments", [{"is_causal": True}, {"attn_mask": torch.eye(5).bool() | torch.ones(5, 5).tril().bool()}]
)
def test_masks_pass_through_the_network(arguments: dict[str, Any]) -> None:
    model, images = tiny_vit(), image_batch()
    opened = open_quantized(model, Bits(), Method())
    switch(opened.model, weights=False, activations=False)
    expected = model(images, **arguments)
    torch.testing.assert_close(opened.model(images, **arguments), expected, rtol=1e-4, atol=1e-5)


def test_deit_tiny_has_14_units_and_97_plus_50_quantizers() -> None:
    opened = open_quantized(timm.create_model("deit_tiny_patch16_224.fb_in1k", pretrained=False), Bits(), Method())
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
    assert [pair.name for pair in opened.pairs[:2]] == ["blocks.0.attn.qkv", "blocks.0.mlp.fc1"]
    assert len(opened.pairs) == 24


@pytest.mark.parametrize("opener", ["float", "quantized"])
def test_units_are_the_modules_that_their_names_say(opener: str) -> None:
    model = tiny_vit()
    opened = open_float(model) if opener == "float" else open_quantized(model, Bits(), Method())
    assert [unit.name for unit in opened.units] == ["patch_embed.proj", "blocks.0", "blocks.1", "head"]
    for unit in opened.units:
        assert unit.module is opened.model.get_submodule(unit.name)


def test_pairs_are_the_modules_that_their_names_say() -> None:
    opened = open_quantized(tiny_vit(), Bits(), Method())
    for pair in opened.pairs:
        assert pair.linear is opened.model.get_submodule(pair.name)
        assert pair.unit == pair.name.rsplit(".", 2)[0]
        norm = "norm1" if pair.name.endswith("qkv") else "norm2"
        assert pair.norm is opened.model.get_submodule(f"{pair.unit}.{norm}")
        assert pair.pad_value is None


def test_a_block_trains_eight_tensors_and_no_norm() -> None:
    opened = open_quantized(tiny_vit(init_values=1e-5, qk_norm=True), Bits(), Method())
    counts = [len(trainable_parameters(unit.module)) for unit in opened.units]
    assert counts == [2, 8, 8, 2]
    block = opened.units[1].module
    names = {name for name, p in block.named_parameters() if any(p is t for t in trainable_parameters(block))}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_parameters_keep_their_names_and_values() -> None:
    model = tiny_vit()
    opened = open_quantized(model, Bits(), Method())
    parameters = dict(opened.model.named_parameters())
    assert parameters.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(parameters[name], value) for name, value in model.named_parameters())


def test_roles_do_not_depend_on_module_names() -> None:
    opened = open_quantized(tiny_vit(), Bits(), Method())
    block = opened.model.blocks[0]
    assert block.attn.qkv.input_quantizer.role is Role.QKV_IN
    assert block.attn.proj.input_quantizer.role is Role.PROJ_IN
    assert block.mlp.fc1.input_quantizer.role is Role.FC1_IN
    assert block.mlp.fc2.input_quantizer.role is Role.GELU_OUT
    assert opened.model.head.input_quantizer.role is Role.HEAD_IN


def test_distilled_deit_is_refused_by_name() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", depth=1, embed_dim=12)
    for opener in (open_float, lambda m: open_quantized(m, Bits(), Method())):
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
        open_quantized(model, Bits(), Method())


def test_one_odd_block_is_found() -> None:
    model = tiny_vit()
    model.blocks[1].mlp = SwiGLUPacked(16, 64)
    with pytest.raises(IsvitError, match=r"blocks\.1\.mlp"):
        open_quantized(model, Bits(), Method())
    model.blocks[1].mlp = Mlp(16, 64)
    open_quantized(model, Bits(), Method())


def test_subclass_with_another_forward_is_refused() -> None:
    """Units replay VisionTransformer's forward pass: a network with another one would be opened wrongly."""

    class Other(VisionTransformer):
        def forward_features(self, x: torch.Tensor, **arguments: Any) -> torch.Tensor:
            return -super().forward_features(x, **arguments)

    with pytest.raises(IsvitError, match="Other"):
        open_float(Other(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2))
