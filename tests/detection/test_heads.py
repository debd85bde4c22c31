"""Neck and heads as units: the same numbers as in the detector, and the boxes that the float detector finds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from detection.runtime import import_mmdet
from isvit_lightning.networks import SINGLE, Data, Unit, open_float, switch
from isvit_lightning.recipe import Bits
from isvit_lightning.stages import Inputs, Schedule, StraightThrough, Tune, TuningStage, Work
from tests.detection.detectors import build, cascade_config, mask_rcnn_config
from tests.helpers import DEFAULT_RECIPE as ISVIT
from tests.stages.fitting import changed, run, snapshot

pytest.importorskip("mmdet")
import_mmdet()

from mmdet.structures.bbox import bbox2roi  # noqa: E402 - needs mmdet's operators

from detection.heads import BOXES, MASKS, by_level, data_samples  # noqa: E402
from detection.network import DetectorAdapter  # noqa: E402

Make = Callable[[], dict[str, Any]]
MAKE = pytest.mark.parametrize("make", [mask_rcnn_config, cascade_config])
ALL = replace(ISVIT, reconstruct="all")
HEADS = {
    mask_rcnn_config: ["neck", "rpn_head", "roi_head.bbox_head", "roi_head.mask_head"],
    cascade_config: [
        "neck",
        "rpn_head",
        *(f"roi_head.{kind}_head.{stage}" for kind in ("bbox", "mask") for stage in (0, 1)),
    ],
}


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def heads(model: nn.Module) -> dict[str, Unit]:
    return {unit.name: unit for unit in DetectorAdapter(model).units() if unit.source is not None}


@torch.no_grad()
def inputs(unit: Unit, target: nn.Module, batch: torch.Tensor) -> Data:
    assert unit.source is not None
    return unit.source(target, batch)


def test_maps_of_several_sizes_are_named_by_level() -> None:
    maps = [torch.randn(3, 4, 6, 5), torch.randn(3, 8, 3, 2), torch.randn(3, 1, 1, 1)]
    named = by_level(maps)
    assert list(named) == ["level0", "level1", "level2"]
    assert all(before is after for before, after in zip(maps, named.values(), strict=True))


@MAKE
def test_heads_are_units_only_if_asked_for(make: Make) -> None:
    model = build(make())
    assert list(heads(model)) == HEADS[make]
    assert [unit.name for unit in open_float(model).units] == [
        unit.name for unit in open_float(model, "all").units if unit.source is None
    ]
    asked, unasked = (recipe.open(model, Bits()) for recipe in (ALL, ISVIT))
    assert [unit.name for unit in asked.units] == [*(unit.name for unit in unasked.units), *HEADS[make]]


@torch.no_grad()
@MAKE
def test_units_compute_what_the_detector_does(make: Make) -> None:
    model: Any = build(make())
    batch, units = images(), heads(model)
    pyramid = model.extract_feat(batch)
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], dim=1)
    read = inputs(units["neck"], model, batch)
    assert [level.shape[1] for level in read.values()] == [8, 16]
    given = units["neck"](read)
    assert list(given) == [SINGLE]
    assert torch.equal(given[SINGLE], tokens)
    scores, deltas = model.rpn_head(pyramid)
    read = inputs(units["rpn_head"], model, batch)
    assert all(torch.equal(level, wanted) for level, wanted in zip(read.values(), pyramid, strict=True))
    found = units["rpn_head"](read)[SINGLE]
    assert torch.equal(found[..., 0], torch.cat([level.flatten(1) for level in scores], dim=1))
    assert torch.equal(found[..., 1:], torch.cat([level.flatten(2).transpose(1, 2) for level in deltas], dim=1))


@torch.no_grad()
def test_box_heads_of_a_cascade_read_the_boxes_of_the_stage_before() -> None:
    model: Any = build(cascade_config())
    batch, units = images(), heads(model)
    pyramid = model.extract_feat(batch)
    proposals = [found.bboxes for found in model.rpn_head.predict(pyramid, data_samples(batch), rescale=False)]
    repeated = [boxes[torch.arange(BOXES) % len(boxes)] for boxes in proposals]
    metas = [sample.metainfo for sample in data_samples(batch)]
    rois, _, _ = model.roi_head._refine_roi(pyramid, bbox2roi(repeated), metas, [BOXES] * len(batch))
    extractor = model.roi_head.bbox_roi_extractor[1]
    expected = extractor(pyramid[: extractor.num_inputs], torch.cat(rois))
    got = inputs(units["roi_head.bbox_head.1"], model, batch)[SINGLE]
    assert got.shape[:2] == (2, BOXES)
    assert torch.allclose(got.flatten(0, 1), expected, atol=1e-6)


@torch.no_grad()
@MAKE
def test_float_and_quantized_look_at_the_same_boxes(make: Make) -> None:
    model = build(make())
    opened = ALL.open(model, Bits())
    switch(opened.model, weights=False, activations=False)
    for quantized, unit in zip(opened.units[-len(HEADS[make]) :], heads(model).values(), strict=True):
        assert quantized.name == unit.name
        found, wanted = inputs(quantized, model, images()), inputs(unit, model, images())
        assert found.keys() == wanted.keys()
        assert all(torch.allclose(tensor, wanted[name], atol=1e-6) for name, tensor in found.items())
    for parameter in opened.model.parameters():
        parameter.mul_(0.5)  # another network, but the boxes of the first
    box = next(unit for unit in opened.units if unit.name.startswith("roi_head.mask_head"))
    assert inputs(box, model, images())[SINGLE].shape[:2] == (2, MASKS)


@torch.no_grad()
def test_without_any_proposal_the_whole_image_is_looked_at() -> None:
    config = mask_rcnn_config()
    config["test_cfg"]["rpn"]["min_bbox_size"] = 10_000
    model: Any = build(config)
    unit = heads(model)["roi_head.bbox_head"]
    found = inputs(unit, model, images())[SINGLE]
    assert found.shape[:2] == (2, BOXES)
    assert torch.equal(found, found[:, :1].expand_as(found))


@MAKE
def test_heads_are_tuned_towards_the_float_ones(make: Make) -> None:
    model = build(make())
    opened = ALL.open(model, Bits(3, 8))
    choice = Tune("stage3", inputs=Inputs("quantized"), trainables=StraightThrough(5e-4, relative=False))
    work = Work(
        opened, open_float(model, "all"), images(4), Schedule(iterations=40, batch_size=4), range_images=64, number=3
    )
    stage = TuningStage(choice, work)
    stage.plan = [index for index in stage.plan if opened.units[index].source is not None]
    before = snapshot(opened.model)
    losses: dict[str, tuple[float, float]] = {}

    class Losses(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            losses[stage.unit.name] = (float(stage.first_loss), float(stage.last_loss))

    run(stage, Losses())
    assert list(losses) == HEADS[make]
    assert all(last < first for first, last in losses.values()), losses
    touched = {name.split(".")[0] for name in changed(before, snapshot(opened.model)) if name.endswith("weight")}
    assert touched == {"neck", "rpn_head", "roi_head"}
