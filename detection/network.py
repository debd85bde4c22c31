"""Adapter for mmdet's two-stage detectors. Imports mmdet: import this module by way of ``detection.runtime``."""

from collections.abc import Iterator
from typing import Any, Final, cast

import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones.swin import SwinTransformer
from mmdet.models.detectors import CascadeRCNN, FasterRCNN, MaskRCNN, TwoStageDetector
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detection.heads import data_samples, head_units
from detection.swin import CONV, LINEAR, SwinBackbone
from isvit_lightning.errors import IsvitError
from isvit_lightning.networks.adapter import adapter_for
from isvit_lightning.networks.factory import LayerFactory
from isvit_lightning.networks.opened import Heads, Unit, Wire
from isvit_lightning.quantizers import Role

_DETECTORS: Final = (MaskRCNN, CascadeRCNN, FasterRCNN)
_LEFT_FLOAT: Final = (nn.ConvTranspose2d, _BatchNorm, nn.GroupNorm, nn.LayerNorm)
PARTS: Final = ("neck", "rpn", "box_head", "mask_head")
"""Parts beside the backbone: inputs of their layers have the roles ``neck_in`` and so on, weights ``neck_weight``."""


class DetectorAdapter:
    """Units of a two-stage detector with a Swin backbone: those of the backbone, then neck and heads.

    Args:
        model: Mask R-CNN, Cascade (Mask) R-CNN or Faster R-CNN of mmdet.

    Raises:
        IsvitError: the detector, or a part of it, is of an unknown kind.
    """

    def __init__(self, model: TwoStageDetector) -> None:
        if type(model) not in _DETECTORS:
            raise IsvitError(
                f"Cannot open the detector {type(model).__name__}, expected MaskRCNN, CascadeRCNN or FasterRCNN: "
                "change model.network.config."
            )
        if type(model.backbone) is not SwinTransformer:
            raise IsvitError(
                f"Cannot open the backbone {type(model.backbone).__name__}, expected mmdet's SwinTransformer, the only "
                "vision transformer it has with windows: change model.network.config."
            )
        self.model = model
        self.backbone = SwinBackbone(model.backbone)

    def insert(self, factory: LayerFactory) -> None:
        """Replace the layers of backbone, neck, region proposals and heads."""
        self.backbone.insert(factory)
        for part, path, module in self._parts():
            quantize_layers(module, factory, part, path)

    def units(self) -> tuple[Unit, ...]:
        """Those of the backbone, the neck, the region proposals, the box heads and the mask heads."""
        return self.backbone.units() + head_units(self.model)

    def wires(self) -> tuple[Wire, ...]:
        """Those of the backbone."""
        return self.backbone.wires()

    def heads(self) -> tuple[Heads, ...]:
        """Those of the backbone."""
        return self.backbone.heads()

    @torch.no_grad()
    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        """One pass of ``images (batch, 3, height, width)`` through every layer; gives the maps that the heads read.

        The mask head reads the boxes that are found; where there are none, it reads the proposals.
        """
        model, samples = self.model, data_samples(images)
        features = model.extract_feat(images)
        proposals = model.rpn_head.predict(features, samples, rescale=False)
        head = model.roi_head
        metas = [sample.metainfo for sample in samples]
        found = head.predict_bbox(features, metas, proposals, head.test_cfg, rescale=False)
        if head.with_mask:
            boxes = found if any(len(each) for each in found) else proposals
            _run_mask_heads(head, features, bbox2roi([each.bboxes for each in boxes]))
        return tuple(features)

    def _parts(self) -> Iterator[tuple[str, str, nn.Module]]:
        model, head = self.model, self.model.roi_head
        if model.with_neck:
            yield "neck", "neck", model.neck
        yield "rpn", "rpn_head", model.rpn_head
        if head.with_shared_head:
            raise IsvitError(
                "Cannot open roi_head.shared_head: layers that boxes and masks share are not supported, expected "
                "separate heads: change model.network.config."
            )
        yield "box_head", "roi_head.bbox_head", head.bbox_head
        if head.with_mask:
            yield "mask_head", "roi_head.mask_head", head.mask_head


def quantize_layers(root: nn.Module, factory: LayerFactory, part: str, path: str) -> None:
    """Replace every linear layer and convolution below ``root``.

    Args:
        root: neck or head, changed in place.
        factory: builds quantized layers.
        part: one of :data:`PARTS`, which names the roles of its inputs and weights.
        path: place of ``root`` in the detector, for messages.

    Raises:
        IsvitError: a layer with weights is of a kind that cannot be quantized.
    """
    role, weight_role = Role(f"{part}_in"), Role(f"{part}_weight", weight=True)
    for name, module in list(root.named_modules()):
        if isinstance(module, ConvModule):
            cast("Any", module).turn_on_efficient_conv_bn_eval(False)  # it would go past the quantizers
        parent, _, leaf = name.rpartition(".")
        if isinstance(module, nn.Linear):
            setattr(root.get_submodule(parent), leaf, factory.linear(module, role, weight_role, known=LINEAR))
        elif isinstance(module, nn.Conv2d):
            setattr(root.get_submodule(parent), leaf, factory.conv(module, role, weight_role, known=CONV))
        elif not isinstance(module, _LEFT_FLOAT) and any(value.dim() > 1 for value in module.parameters(recurse=False)):
            raise IsvitError(
                f"Cannot open {path}.{name}: a {type(module).__name__} is not supported, expected linear layers and "
                "convolutions: change model.network.config."
            )


def _run_mask_heads(head: Any, features: tuple[Tensor, ...], rois: Tensor) -> None:
    if not isinstance(head.mask_head, nn.ModuleList):
        head._mask_forward(features, rois)
        return
    for stage in range(len(head.mask_head)):
        head._mask_forward(stage, features, rois)


@adapter_for.register
def _(model: TwoStageDetector) -> DetectorAdapter:
    return DetectorAdapter(model)
