"""The Swin adapter against timm's own forward pass; padding; unit and quantizer counts; refusals."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import open_float, quantizers, switch
from isvit_lightning.networks.swin import QuantSwinBlock, SwinAdapter
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.stages.trainables import trainable_parameters
from isvit_lightning.transforms import is_foldable
from tests.helpers import (
    DEFAULT_RECIPE,
    double_precision,
    image_batch,
    quantized_network,
    relative_change,
    tiny_swin,
)
from tests.networks.rotating import rotate_heads

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded_windows": {"img_size": 40},
    "padded_windows_and_merging": {"img_size": 36},
    "oblong_image": {"img_size": (32, 44)},
    "window_as_large_as_the_map": {"window_size": 8},
    "oblong_window": {"window_size": ((4, 2), (2, 2))},
    "no_qkv_bias": {"qkv_bias": False},
    "head_dim": {"head_dim": 6},
    "always_partition": {"always_partition": True, "img_size": 20},
    "three_stages": {"depths": (1, 2, 1), "num_heads": (1, 2, 4), "img_size": 48},
    "token_logits": {"global_pool": ""},
    "norms_without_bias": {"norm_layer": partial(nn.LayerNorm, bias=False), "img_size": 40},
}


def images_for(model: SwinTransformer) -> torch.Tensor:
    """Random images of the network's size."""
    return image_batch(model.patch_embed.img_size)


@pytest.mark.parametrize("variant", VARIANTS)
def test_switched_off_is_the_float_network(variant: str) -> None:
    model = tiny_swin(**VARIANTS[variant])
    images = images_for(model)
    expected = model(images)
    opened = DEFAULT_RECIPE.open(model, Bits())
    switch(opened.model, weights=False, activations=False)
    torch.testing.assert_close(opened.model(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(opened.walk(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_walk_is_the_forward_pass(variant: str) -> None:
    model = tiny_swin(**VARIANTS[variant])
    images = images_for(model)
    opened = quantized_network(model, images)
    assert torch.equal(opened.walk(images), opened.model(images))
    assert not torch.allclose(opened.model(images), model(images), atol=1e-4)
    assert torch.equal(open_float(model).walk(images), model(images))


def test_variants_cover_shift_and_padding() -> None:
    shifts = [block.shift_size for layer in tiny_swin().layers for block in layer.blocks]
    assert (2, 2) in shifts
    assert (0, 0) in shifts
    block = tiny_swin(img_size=40).layers[0].blocks[1]
    assert block.input_resolution[0] % block.window_size[0] != 0
    assert any(block.shift_size)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("size", [32, 40, (36, 44)])
def test_block_is_timms_block(index: int, size: int | tuple[int, int]) -> None:
    model = tiny_swin(img_size=size)
    opened = DEFAULT_RECIPE.open(model, Bits())
    switch(opened.model, weights=False, activations=False)
    height, width = model.layers[0].blocks[index].input_resolution
    maps = torch.randn(2, height, width, 8)
    torch.testing.assert_close(
        opened.model.layers[0].blocks[index](maps), model.layers[0].blocks[index](maps), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "units", "activations", "weights", "depths"),
    [
        ("swin_tiny_patch4_window7_224.ms_in1k", 17, 100, 53, (2, 2, 6, 2)),
        ("swin_small_patch4_window7_224.ms_in1k", 29, 196, 101, (2, 2, 18, 2)),
    ],
)
def test_counts(name: str, units: int, activations: int, weights: int, depths: tuple[int, ...]) -> None:
    # Narrow, which changes neither depths nor the layout.
    model = timm.create_model(name, pretrained=False, embed_dim=12)
    opened = DEFAULT_RECIPE.open(model, Bits())
    expected = ["patch_embed.proj"]
    for stage, depth in enumerate(depths):
        if stage:
            expected.append(f"layers.{stage}.downsample.reduction")
        expected += [f"layers.{stage}.blocks.{index}" for index in range(depth)]
    expected.append("head.fc")
    assert [unit.name for unit in opened.units] == expected
    assert len(opened.units) == units
    roles = Counter(quantizer.role for quantizer in quantizers(opened.model).values())
    assert roles.pop(Role.WEIGHT) == weights
    assert sum(roles.values()) == activations
    assert (roles.pop(Role.HEAD_IN), roles.pop(Role.REDUCTION_IN)) == (1, 3)
    assert set(roles.values()) == {sum(depths)}
    assert len(roles) == 8
    # Those of the patch mergings too.
    assert len(opened.wires) == 2 * sum(depths) + 3


@pytest.mark.parametrize("opener", ["float", "quantized"])
def test_units_are_the_modules_that_their_names_say(opener: str) -> None:
    model = tiny_swin()
    opened = open_float(model) if opener == "float" else DEFAULT_RECIPE.open(model, Bits())
    for unit in opened.units:
        assert unit.module is opened.model.get_submodule(unit.name)


@pytest.mark.parametrize("opener", ["float", "quantized"])
def test_wires_are_the_modules_that_their_names_say(opener: str) -> None:
    model = tiny_swin()
    opened = open_float(model) if opener == "float" else DEFAULT_RECIPE.open(model, Bits())
    assert len(opened.wires) == 9
    for wire in opened.wires:
        (reader,) = wire.readers
        assert reader is opened.model.get_submodule(wire.name)
        norm = {"qkv": "norm1", "fc1": "norm2", "reduction": "norm"}[wire.name.rsplit(".", 1)[1]]
        before = wire.unit.removesuffix(".reduction")
        assert wire.norm is opened.model.get_submodule(f"{before}.{norm}")
        assert wire.name.startswith(wire.unit)
        assert wire.unit in {unit.name for unit in opened.units}


def test_reductions_can_be_folded_by_placement() -> None:
    model = tiny_swin()
    by_channel = read_recipe("repq").open(model, Bits())
    assert sum(map(is_foldable, by_channel.wires)) == 9
    wire = by_channel.wires[-1]
    assert wire.name == wire.unit == "layers.1.downsample.reduction"
    assert by_channel.model.layers[1].downsample.reduction.input_quantizer.granularity.shape == (32,)
    default = DEFAULT_RECIPE.open(model, Bits())
    assert [is_foldable(wire) for wire in default.wires] == [True] * 8 + [False]
    assert default.model.layers[1].downsample.reduction.input_quantizer.granularity.shape == ()


def test_heads_can_be_rotated() -> None:
    """Each head's queries with its keys, and its values with the columns that read them."""
    with double_precision():
        model, images = tiny_swin(), image_batch(32)
        expected, heads = model(images), SwinAdapter(model).heads()
        assert [(each.name, each.count) for each in heads] == [
            (f"layers.{stage}.blocks.{index}.attn", stage + 1) for stage in range(2) for index in range(2)
        ]
        rotate_heads(heads)
        assert relative_change(model(images), expected) < 1e-12


def test_a_block_trains_nine_tensors_and_no_norm() -> None:
    opened = DEFAULT_RECIPE.open(tiny_swin(), Bits())
    counts = {unit.name: len(trainable_parameters(unit.module)) for unit in opened.units}
    assert counts.pop("patch_embed.proj") == counts.pop("head.fc") == 2
    assert counts.pop("layers.1.downsample.reduction") == 1
    assert set(counts.values()) == {9}
    block = opened.units[1].module
    names = {name for name, p in block.named_parameters() if any(p is t for t in trainable_parameters(block))}
    assert "attn.relative_position_bias_table" in names
    assert not any("norm" in name for name in names)


def test_parameters_keep_their_names_and_values() -> None:
    model = tiny_swin()
    opened = DEFAULT_RECIPE.open(model, Bits())
    parameters = dict(opened.model.named_parameters())
    assert parameters.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(parameters[name], value) for name, value in model.named_parameters())


def test_pad_value_of_each_block_belongs_to_its_qkv_wire() -> None:
    opened = DEFAULT_RECIPE.open(tiny_swin(), Bits())
    padded = [wire for wire in opened.wires if wire.pad_value is not None]
    assert [wire.name for wire in padded] == [wire.name for wire in opened.wires if wire.name.endswith("qkv")]
    for wire in padded:
        block = opened.model.get_submodule(wire.unit)
        assert isinstance(block, QuantSwinBlock)
        assert wire.pad_value is block.pad_value


def test_pad_value_is_what_padding_holds() -> None:
    opened = DEFAULT_RECIPE.open(tiny_swin(img_size=40), Bits())
    switch(opened.model, weights=False, activations=False)
    block = opened.model.layers[0].blocks[0]
    block.pad_value.copy_(torch.arange(8.0) + 10)
    seen: list[torch.Tensor] = []
    block.attn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    maps = torch.randn(1, 10, 10, 8)
    block(maps)
    windows = seen[0].view(3, 3, 4, 4, 8).permute(0, 2, 1, 3, 4).reshape(12, 12, 8)
    torch.testing.assert_close(windows[:10, :10], block.norm1(maps)[0])
    torch.testing.assert_close(windows[10:], block.pad_value.expand(2, 12, 8))
    torch.testing.assert_close(windows[:, 10:], block.pad_value.expand(12, 2, 8))


def test_images_without_padding_do_not_feel_the_pad_value() -> None:
    model, images = tiny_swin(), image_batch(32)
    opened = DEFAULT_RECIPE.open(model, Bits())
    switch(opened.model, weights=False, activations=False)
    before = opened.model(images)
    for layer in opened.model.layers:
        for block in layer.blocks:
            block.pad_value.fill_(100.0)
    assert torch.equal(opened.model(images), before)


def test_dynamic_mask_is_refused() -> None:
    with pytest.raises(IsvitError, match="dynamic_mask"):
        DEFAULT_RECIPE.open(tiny_swin(dynamic_img_size=True), Bits())


def test_refusals_name_the_module() -> None:
    model = tiny_swin()
    model.layers[1].blocks[0].mlp = SwiGLUPacked(16, 64)
    with pytest.raises(IsvitError, match=r"layers\.1\.blocks\.0\.mlp: it is a GluMlp"):
        open_float(model)
    model = tiny_swin()
    model.layers[1].downsample.norm = nn.Identity()
    with pytest.raises(IsvitError, match=r"layers\.1\.downsample\.norm"):
        open_float(model)
    with pytest.raises(IsvitError, match=r"head\.fc: it is a Identity"):
        open_float(tiny_swin(num_classes=0))


def test_refused_attention_is_named_with_its_block() -> None:
    model = tiny_swin()
    model.layers[1].blocks[1].attn = nn.Identity()
    with pytest.raises(IsvitError, match=r"layers\.1\.blocks\.1\.attn: it is a Identity"):
        DEFAULT_RECIPE.open(model, Bits())
