"""The opened Swin of mmdet computes what mmdet computes: windows that do not fit, shifts and masks included."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from detection.runtime import import_mmdet
from isvit_lightning.layers import QuantLayerNorm
from isvit_lightning.networks import LayerFactory, calibrate_activations, quantizers, switch
from isvit_lightning.quantizers import PerChannel, PerTensor, Role
from isvit_lightning.recipe import Bits, Choice, Placement
from isvit_lightning.transforms import fold, is_foldable
from tests.detection.detectors import backbone_config, build
from tests.helpers import DEFAULT_RECIPE, double_precision

pytest.importorskip("mmdet")
import_mmdet()

from detection.swin import QuantShiftWindowAttention, SwinBackbone  # noqa: E402 - needs mmdet's operators

# Tokens of stage 1 are 4 times fewer: 8 x 12 fit windows of 4; 9 x 13 and then 5 x 7 do not; 3 x 5 are less than one.
SIZES = [(32, 48), (36, 52), (33, 50), (12, 20)]
PLACEMENT = DEFAULT_RECIPE.placement


def features_by_units(backbone: SwinBackbone, images: torch.Tensor) -> list[torch.Tensor]:
    """Output of each stage of the backbone, from unit to unit."""
    outputs, value = [], images
    for unit in backbone.units():
        if unit.name.endswith("downsample.reduction"):
            outputs.append(value)
        value = unit.module(unit.enter(value))
    outputs.append(value)
    model = backbone.model
    norms = [getattr(model, f"norm{index}") for index in range(len(outputs))]
    return [norm(output).permute(0, 3, 1, 2) for norm, output in zip(norms, outputs, strict=True)]


def quantized(backbone: torch.nn.Module, placement: Placement = PLACEMENT, bits: int = 4) -> SwinBackbone:
    """A copy with quantizers, all of them switched off."""
    adapter = SwinBackbone(copy.deepcopy(backbone).requires_grad_(False))
    adapter.insert(LayerFactory(placement.build(Bits(bits, bits))))
    switch(adapter.model, weights=False, activations=False)
    return adapter


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_float_units_are_the_backbone(size: tuple[int, int]) -> None:
    backbone, images = build(backbone_config()), torch.randn(2, 3, *size)
    for found, expected in zip(features_by_units(SwinBackbone(backbone), images), backbone(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [4, 7])
@torch.no_grad()
def test_layers_that_do_not_quantize_change_nothing(size: tuple[int, int], window: int) -> None:
    with double_precision():
        backbone, images = build(backbone_config(window_size=window)), torch.randn(2, 3, *size)
        adapter, expected = quantized(backbone), backbone(images)
        for found in (adapter.model(images), features_by_units(adapter, images)):
            for level, wanted in zip(found, expected, strict=True):
                torch.testing.assert_close(level, wanted, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_mask_is_mmdets_and_matters() -> None:
    """Without the mask the shifted blocks differ, so that the test above would have noticed."""
    backbone, images = build(backbone_config()), torch.randn(1, 3, 32, 32)
    adapter = quantized(backbone)
    shifted = [module for module in adapter.model.modules() if isinstance(module, QuantShiftWindowAttention)]
    assert [module.shift_size for module in shifted] == [0, 2, 0, 2]
    mask = shifted[1]._mask(torch.zeros(1, 8, 8, 8))
    assert mask.shape == (4, 16, 16)
    assert not mask[0].any()
    assert set(mask[3].unique().tolist()) == {-100.0, 0.0}
    shifted[1]._mask = lambda x: torch.zeros(4, 16, 16)  # type: ignore[method-assign]
    assert not torch.allclose(adapter.model(images)[0], backbone(images)[0], atol=1e-3)


@pytest.mark.parametrize("reductions", [False, True])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_stage_2_changes_nothing_where_windows_are_padded(size: tuple[int, int], reductions: bool) -> None:
    """Padding behind norm1 becomes what stage 2 made of a zero: the float network after the fold is the one before."""
    with double_precision():
        backbone, images = build(backbone_config()), torch.randn(2, 3, *size)
        placement = PLACEMENT
        if reductions:
            placement = replace(placement, reduction_in=Choice(granularity="channel"))
        adapter = quantized(backbone, placement)
        wires = [wire for wire in adapter.wires() if is_foldable(wire)]
        assert len(wires) == 8 + reductions
        readers: list[Any] = [wire.readers[0] for wire in wires]
        switch(adapter.model, weights=False, activations=True)
        calibrate_activations(adapter.model, lambda: adapter.model(images))
        assert all(isinstance(reader.input_quantizer.granularity, PerChannel) for reader in readers)
        before = adapter.model(images)
        for wire in wires:
            fold(wire)
        assert all(isinstance(reader.input_quantizer.granularity, PerTensor) for reader in readers)
        for level, wanted in zip(adapter.model(images), before, strict=True):
            torch.testing.assert_close(level, wanted, rtol=1e-9, atol=1e-9)
        switch(adapter.model, weights=False, activations=False)
        for level, wanted in zip(adapter.model(images), backbone(images), strict=True):
            torch.testing.assert_close(level, wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_zero_padding_after_stage_2_would_be_wrong() -> None:
    with double_precision():
        backbone, images = build(backbone_config()), torch.randn(2, 3, 36, 52)
        adapter = quantized(backbone)
        switch(adapter.model, weights=False, activations=True)
        calibrate_activations(adapter.model, lambda: adapter.model(images))
        for wire in filter(is_foldable, adapter.wires()):
            fold(wire)
        switch(adapter.model, weights=False, activations=False)
        for module in adapter.model.modules():
            if isinstance(module, QuantShiftWindowAttention):
                module.pad_value.zero_()
        assert not torch.allclose(adapter.model(images)[0], backbone(images)[0], atol=1e-3)


def test_wires_and_heads_are_known_before_and_after_the_layers_are_quantized() -> None:
    backbone = build(backbone_config())
    adapters = [SwinBackbone(backbone), quantized(backbone)]
    blocks = [f"backbone.stages.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1)]
    merging = "backbone.stages.0.downsample"
    for adapter, inserted in zip(adapters, (False, True), strict=True):
        found = {wire.name: wire for wire in adapter.wires()}
        assert {wire.name: wire.unit for wire in adapter.wires()} == {
            **{f"{block}.attn.w_msa.qkv": block for block in blocks},
            **{f"{block}.ffn.layers.0.0": block for block in blocks},
            f"{merging}.reduction": f"{merging}.reduction",
        }
        for name, wire in found.items():
            parent = adapter.model.get_submodule(name.removeprefix("backbone."))
            assert wire.readers == (parent,)
            assert wire.norm.normalized_shape == (parent.in_features,)
            assert (wire.pad_value is not None) == (inserted and name.endswith("qkv"))
        heads = adapter.heads()
        assert [each.name for each in heads] == [f"{block}.attn.w_msa" for block in blocks]
        assert [each.count for each in heads] == [1, 1, 2, 2]
        for each in heads:
            msa = adapter.model.get_submodule(each.name.removeprefix("backbone."))
            assert (each.qkv, each.proj) == (msa.qkv, msa.proj)
            assert each.rotates_scores
            assert each.rotates_values


@torch.no_grad()
def test_inputs_of_norms_can_be_quantized() -> None:
    backbone, images = build(backbone_config()), torch.randn(2, 3, 36, 52)
    adapter = quantized(backbone, replace(PLACEMENT, norm_in=Choice()), bits=8)
    norms = [module for module in adapter.model.modules() if isinstance(module, QuantLayerNorm)]
    assert len(norms) == 2 * 4 + 1
    assert len(adapter.wires()) == 2 * 4 + 1
    for level, wanted in zip(adapter.model(images), backbone(images), strict=True):
        torch.testing.assert_close(level, wanted, rtol=1e-5, atol=1e-5)
    switch(adapter.model, weights=False, activations=True)
    calibrate_activations(adapter.model, lambda: adapter.model(images))
    assert all(norm.input_quantizer.calibrated for norm in norms)
    assert {norm.input_quantizer.role for norm in norms} == {Role.NORM_IN}


def test_every_layer_is_quantized() -> None:
    adapter = quantized(build(backbone_config()))
    # 9 activations and 4 weights per block, 2 of the reduction, the weight of the projection.
    assert len(quantizers(adapter.model)) == 4 * 12 + 2 + 1
    assert [unit.name for unit in adapter.units()] == [
        "backbone.patch_embed.projection",
        "backbone.stages.0.blocks.0",
        "backbone.stages.0.blocks.1",
        "backbone.stages.0.downsample.reduction",
        "backbone.stages.1.blocks.0",
        "backbone.stages.1.blocks.1",
    ]
