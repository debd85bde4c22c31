from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from detection.runtime import import_mmdet
from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantConv2d, QuantLinear
from isvit_lightning.networks import (
    calibrate_activations,
    open_float,
    quantizers,
    require_calibrated,
    switch,
)
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe import Bits, Recipe, Variant
from isvit_lightning.run.inspection import float_layers
from isvit_lightning.run.pipeline import Calibration, require_equal_outputs
from isvit_lightning.stages import Schedule
from isvit_lightning.transforms import RotateHeads
from tests.detection.detectors import build, calibrated, cascade_config, mask_rcnn_config
from tests.helpers import DEFAULT_RECIPE as ISVIT
from tests.helpers import fold_all

pytest.importorskip("mmdet")
import_mmdet()

from detection.network import DetectorAdapter, data_samples  # noqa: E402 - needs mmdet's operators

CONFIGS = [mask_rcnn_config, cascade_config]
Make = Callable[[], dict[str, Any]]


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def predictions(model: nn.Module, batch: torch.Tensor) -> list[torch.Tensor]:
    found = model.predict(batch, data_samples(batch))
    return [value for each in found for value in (each.pred_instances.bboxes, each.pred_instances.scores)]


@pytest.mark.parametrize("make", CONFIGS)
def test_layers_that_do_not_quantize_change_no_prediction(make: Make) -> None:
    model = build(make())
    opened = ISVIT.open(model, Bits())
    switch(opened.model, weights=False, activations=False)
    expected = predictions(model, images())
    assert len(expected[0]) > 0
    for found, wanted in zip(predictions(opened.model, images()), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", CONFIGS)
def test_one_pass_chooses_every_range(make: Make) -> None:
    model = calibrated(build(make()), images(), Bits(8, 8))
    require_calibrated(model)
    boxes = predictions(model, images())[0]
    assert bool(torch.isfinite(boxes).all())


@pytest.mark.parametrize("make", CONFIGS)
def test_every_layer_has_its_role(make: Make) -> None:
    opened = ISVIT.open(build(make()), Bits())
    parts = {
        "neck.": "neck",
        "rpn_head.": "rpn",
        "roi_head.bbox_head.": "box_head",
        "roi_head.mask_head.": "mask_head",
    }
    for name, module in opened.model.named_modules():
        assert not isinstance(module, nn.Linear | nn.Conv2d), f"{name} is float"
        wanted = [part for prefix, part in parts.items() if name.startswith(prefix)]
        if isinstance(module, QuantLinear | QuantConv2d) and wanted:
            assert module.input_quantizer is not None
            assert module.input_quantizer.role == Role(f"{wanted[0]}_in")
            assert module.weight_quantizer is not None
            assert module.weight_quantizer.role == Role(f"{wanted[0]}_weight", weight=True)
    assert all(name.endswith("upsample") for name in float_layers(opened.model))
    assert float_layers(opened.model)


def test_parts_have_their_own_bits() -> None:
    widths = {"box_head_in": 8, "box_head_weight": 8, "rpn_in": 6, "rpn_weight": 6}
    others = {name: Variant(bits=bits) for name, bits in widths.items()}
    recipe = replace(ISVIT, placement=replace(ISVIT.placement, others=others))
    model = recipe.open(build(mask_rcnn_config()), Bits(4, 3)).model
    for name, quantizer in quantizers(model).items():
        expected = 4 if quantizer.role.weight else 3
        if name.startswith("roi_head.bbox_head"):
            expected = 8
        if name.startswith("rpn_head"):
            expected = 6
        assert quantizer.bits == expected, name


def test_a_layer_shared_among_levels_sees_all_of_them() -> None:
    """The largest value stands on the first level; a range from the last level alone would clip it."""
    opened = ISVIT.open(build(mask_rcnn_config()), Bits(8, 8))
    model = opened.model
    switch(model, weights=False, activations=True)
    seen: list[torch.Tensor] = []
    convolution = model.get_submodule("rpn_head.rpn_conv")
    handle = convolution.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    calibrate_activations(model, lambda: opened.walk(images()))
    handle.remove()
    levels = seen[-3:]
    quantizer = convolution.input_quantizer
    largest = float(torch.cat([level.flatten() for level in levels]).max())
    reach = float(quantizer.decode(torch.tensor(255)))
    assert float(levels[-1].max()) < 0.9 * largest
    assert reach > 0.9 * largest
    assert quantizer.enabled


def test_masks_are_calibrated_where_nothing_is_found() -> None:
    config = mask_rcnn_config()
    config["test_cfg"]["rcnn"]["score_thr"] = 1.1
    opened = ISVIT.open(build(config), Bits())
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.walk(images()))
    require_calibrated(opened.model)


def test_the_units_are_the_backbone() -> None:
    opened = open_float(build(mask_rcnn_config()))
    assert all(unit.name.startswith("backbone.") for unit in opened.units)
    assert len(opened.units) == 6


@pytest.mark.parametrize("make", CONFIGS)
def test_wires_and_heads_are_those_of_the_backbone(make: Make) -> None:
    model = build(make())
    for known in (model, ISVIT.open(model, Bits()).model):
        adapter = DetectorAdapter(known)
        for found, wanted in ((adapter.wires(), adapter.backbone.wires()), (adapter.heads(), adapter.backbone.heads())):
            assert found == wanted
            assert all(each.name.startswith("backbone.") for each in found)
        assert {wire.unit for wire in adapter.wires()} < {unit.name for unit in adapter.units()}


def test_roles_of_parts_that_the_detector_lacks_are_refused() -> None:
    recipe = replace(ISVIT, placement=replace(ISVIT.placement, others={"box_head": Variant(bits=8)}))
    with pytest.raises(IsvitError, match=r"no tensor of the role box_head, expected one of .*box_head_in, .*others"):
        recipe.open(build(mask_rcnn_config()), Bits())


def test_another_detector_is_refused() -> None:
    config = mask_rcnn_config()
    resnet = {"type": "ResNet", "depth": 18, "out_indices": [0, 1]}
    other = {**config, "backbone": resnet, "neck": {**config["neck"], "in_channels": [64, 128]}}
    with pytest.raises(IsvitError, match="backbone ResNet, expected mmdet's SwinTransformer"):
        open_float(build(other))


def test_a_layer_of_another_kind_is_refused() -> None:
    model = build(mask_rcnn_config())
    model.get_submodule("neck").extra = nn.Conv3d(1, 1, 1)
    with pytest.raises(IsvitError, match=r"Cannot open neck.extra: a Conv3d"):
        ISVIT.open(model, Bits())


def check(model: nn.Module, recipe: Recipe = ISVIT) -> None:
    require_equal_outputs(Calibration(model, images(), Bits(), recipe, Schedule()))


@pytest.mark.parametrize("make", CONFIGS)
def test_an_opened_detector_gives_the_float_detectors_outputs(make: Make) -> None:
    check(build(make()))
    check(build(make()), replace(ISVIT, transforms=[RotateHeads()]))


DIFFERENT: dict[str, tuple[str, str]] = {
    "backbone": ("backbone.stages.0.blocks.1.attn.w_msa.softmax", r"in backbone\.stages\.0\.blocks\.1 \("),
    "between": ("backbone.patch_embed.norm", r"between backbone\.patch_embed\.projection and backbone\.stages\.0"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_the_unit_that_differs_is_named(case: str) -> None:
    path, message = DIFFERENT[case]
    model = build(mask_rcnn_config())
    parent, _, name = path.rpartition(".")
    if case == "backbone":
        setattr(model.get_submodule(parent), name, nn.Sigmoid())
    else:
        model.get_submodule(parent).register_forward_hook(lambda _, __, output: (2 * output[0], output[1]))
    with pytest.raises(IsvitError, match=message):
        check(model)


ADDED = {
    "neck": "neck.fpn_convs.0.conv",
    "box_head": "roi_head.bbox_head.shared_fcs.1",
    "feed_forward": "backbone.stages.0.blocks.0.ffn.layers.1",
    "attention": "backbone.stages.0.blocks.0.attn.w_msa",
    "shifted_windows": "backbone.stages.0.blocks.1.attn",
}


@pytest.mark.parametrize("part", ADDED)
def test_what_was_added_to_a_part_is_refused_by_its_path(part: str) -> None:
    model, path = build(mask_rcnn_config()), ADDED[part]
    model.get_submodule(path).register_forward_hook(lambda _, __, output: 2 * output)
    with pytest.raises(IsvitError, match=rf"Cannot replace {path}: it is a \w+ with the hook"):
        ISVIT.open(model, Bits())
    model = build(mask_rcnn_config())
    module = model.get_submodule(path)
    module.__class__ = type("Adapted", (type(module),), {})
    with pytest.raises(IsvitError, match=rf"Cannot replace {path}: it is a Adapted, expected exactly"):
        ISVIT.open(model, Bits())


def test_norms_of_a_detector_without_bias() -> None:
    config = mask_rcnn_config()
    model = build(config)
    for module in list(model.modules()):
        if isinstance(module, nn.LayerNorm):
            module.register_parameter("bias", None)
    check(model)
    opened = ISVIT.open(model, Bits(8, 8))
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.walk(images()))
    before = opened.model.extract_feat(images())[0]
    fold_all(opened)
    assert float((opened.model.extract_feat(images())[0] - before).norm() / before.norm()) < 1e-2
