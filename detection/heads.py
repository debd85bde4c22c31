"""Neck and heads of a two-stage detector in units. Imports mmdet: import this module by way of ``detection.runtime``.

They are no chain: the neck reads several maps, each by its name, and boxes are cut out of its maps where the float
detector finds them. So each unit computes its inputs from the images, and float and quantized units look at the same
boxes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, get_box_tensor
from torch import Tensor, nn

from isvit_lightning.networks import SINGLE, Data, Unit

BOXES = 64
"""Proposals of an image that the box head is tuned on."""
MASKS = 16
"""Found boxes of an image that the mask head is tuned on."""


def head_units(model: TwoStageDetector) -> tuple[Unit, ...]:
    """Neck, region proposals, box heads and mask heads, in order of execution."""
    units, head = [], cast("Any", model).roi_head
    if model.with_neck:
        units.append(_unit("neck", NeckUnit(model.neck), _neck_inputs, model))
    units.append(_unit("rpn_head", ProposalUnit(model.rpn_head), _pyramid, model, mixed=True))
    for stage, box_head in enumerate(each(head.bbox_head)):
        name = _name("roi_head.bbox_head", head.bbox_head, stage)
        units.append(_unit(name, BoxUnit(box_head), partial(_box_inputs, stage), model, mixed=True))
    for stage, mask_head in enumerate(each(head.mask_head) if head.with_mask else ()):
        name = _name("roi_head.mask_head", head.mask_head, stage)
        units.append(_unit(name, MaskUnit(mask_head), partial(_mask_inputs, stage), model))
    return tuple(units)


class HeadUnit(nn.Module):
    """Neck or head as a map of named tensors, which its ``forward`` describes.

    Args:
        part: float or quantized; the detector keeps it where it is.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part


class NeckUnit(HeadUnit):
    """The neck."""

    def forward(self, maps: Data) -> Data:
        """Map the backbone's maps by level to the pyramid as tokens ``(batch, positions of all levels, channels)``."""
        return {SINGLE: _tokens(self.part(tuple(maps.values())))}


class ProposalUnit(HeadUnit):
    """The head of the region proposals."""

    def forward(self, maps: Data) -> Data:
        """Map the pyramid by level to scores and box deltas ``(batch, positions, 5 · anchors)``."""
        scores, deltas = self.part(tuple(maps.values()))
        return {SINGLE: _tokens([torch.cat(pair, dim=1) for pair in zip(scores, deltas, strict=True)])}


class BoxUnit(HeadUnit):
    """A box head."""

    def forward(self, data: Data) -> Data:
        """Map features ``(batch, boxes, channels, height, width)`` to scores and deltas ``(batch, boxes, numbers)``."""
        features = data[SINGLE]
        found = [part for part in self.part(features.flatten(0, 1)) if part is not None]
        return {SINGLE: torch.cat(found, dim=1).view(*features.shape[:2], -1)}


class MaskUnit(HeadUnit):
    """A mask head."""

    def forward(self, data: Data) -> Data:
        """Map features ``(batch, boxes, channels, height, width)`` to the masks' logits ``(batch, boxes, numbers)``."""
        features = data[SINGLE]
        masks: Tensor = self.part(features.flatten(0, 1))
        return {SINGLE: masks.view(*features.shape[:2], -1)}


def by_level(maps: Sequence[Tensor]) -> Data:
    """Maps ``(batch, channels, height, width)`` of several sizes by level, ``level0`` first."""
    return {f"level{level}": features for level, features in enumerate(maps)}


def each(heads: nn.Module) -> list[Any]:
    """The heads of a cascade, or the only one."""
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def data_samples(images: Tensor) -> list[DetDataSample]:
    """What mmdet wants to know of each of ``images (batch, 3, height, width)`` that are as they are: no scaling."""
    size = tuple(images.shape[-2:])
    shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size)
    return [DetDataSample(metainfo={**shapes, "scale_factor": (1.0, 1.0)}) for _ in images]


def _unit(
    name: str, module: nn.Module, source: Callable[[Any, Any, Tensor], Data], model: nn.Module, mixed: bool = False
) -> Unit:
    return Unit(name, module, _as_it_is, partial(source, model), mixed, named=True)


def _as_it_is(inputs: Tensor) -> Tensor:
    return inputs


def _name(path: str, heads: nn.Module, stage: int) -> str:
    return f"{path}.{stage}" if isinstance(heads, nn.ModuleList) else path


def _tokens(maps: Sequence[Tensor]) -> Tensor:
    """Maps ``(batch, channels, height, width)`` as tokens ``(batch, positions of all maps, channels)``."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)


def _neck_inputs(model: Any, _target: Any, images: Tensor) -> Data:
    return by_level(model.backbone(images))


def _pyramid(model: Any, _target: Any, images: Tensor) -> Data:
    return by_level(model.extract_feat(images))


def _box_inputs(stage: int, model: Any, target: Any, images: Tensor) -> Data:
    """Features ``(batch, BOXES, channels, height, width)`` of ``model`` where ``target`` proposes boxes."""
    seen = target.extract_feat(images)
    rois = bbox2roi([_exactly(found.bboxes, BOXES, images) for found in _proposals(target, seen, images)])
    for earlier in range(stage):
        rois = _refined(target.roi_head, earlier, seen, rois, images)
    return _cut_out(each(model.roi_head.bbox_roi_extractor)[stage], model, target, seen, rois, images)


def _mask_inputs(stage: int, model: Any, target: Any, images: Tensor) -> Data:
    """Features ``(batch, MASKS, channels, height, width)`` of ``model`` in the boxes that ``target`` finds."""
    seen, head = target.extract_feat(images), target.roi_head
    proposals = _proposals(target, seen, images)
    metas = [sample.metainfo for sample in data_samples(images)]
    found = head.predict_bbox(seen, metas, proposals, head.test_cfg, rescale=False)
    boxes = [some if len(some) else others for some, others in zip(found, proposals, strict=True)]
    rois = bbox2roi([_exactly(some.bboxes, MASKS, images) for some in boxes])
    return _cut_out(each(model.roi_head.mask_roi_extractor)[stage], model, target, seen, rois, images)


def _proposals(target: Any, seen: Any, images: Tensor) -> list[Any]:
    found: list[Any] = target.rpn_head.predict(seen, data_samples(images), rescale=False)
    return found


def _refined(head: Any, stage: int, seen: Any, rois: Tensor, images: Tensor) -> Tensor:
    """Boxes ``(n, 5)`` behind one stage of a cascade."""
    found, box_head = head._bbox_forward(stage, seen, rois), head.bbox_head[stage]
    labels = found["cls_score"][:, :-1].argmax(dim=1)
    meta = data_samples(images[:1])[0].metainfo
    boxes = box_head.regress_by_class(rois[:, 1:], labels, found["bbox_pred"], meta)
    return torch.cat([rois[:, :1], get_box_tensor(boxes)], dim=1)


def _cut_out(extractor: Any, model: Any, target: Any, seen: Any, rois: Tensor, images: Tensor) -> Data:
    features = seen if model is target else model.extract_feat(images)
    found: Tensor = extractor(features[: extractor.num_inputs], rois)
    return {SINGLE: found.view(len(images), -1, *found.shape[1:])}


def _exactly(boxes: Tensor, count: int, images: Tensor) -> Tensor:
    """The first ``count`` boxes, repeated where there are fewer; the whole image where there is none."""
    if not len(boxes):
        height, width = images.shape[-2:]
        boxes = images.new_tensor([[0.0, 0.0, width, height]])
    return boxes[torch.arange(count, device=boxes.device) % len(boxes)]
