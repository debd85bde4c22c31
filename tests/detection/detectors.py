"""Tiny detectors of mmdet with random weights, for tests."""

from typing import Any

import torch
from torch import nn

from detection.runtime import import_mmdet
from isvit_lightning.networks import calibrate_activations, calibrate_weights, switch
from isvit_lightning.recipe import Bits
from tests.helpers import DEFAULT_RECIPE, fold_all, randomized

CHANNELS = 8


def backbone_config(**changes: Any) -> dict[str, Any]:
    return {
        "type": "SwinTransformer",
        "embed_dims": 8,
        "depths": [2, 2],
        "num_heads": [1, 2],
        "strides": [4, 2],
        "out_indices": [0, 1],
        "window_size": 4,
        "drop_path_rate": 0.1,
        **changes,
    }


def mask_rcnn_config() -> dict[str, Any]:
    """Two pyramid levels, two classes."""
    coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4}
    rpn = {"nms_pre": 50, "max_per_img": 12, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0}
    rcnn = {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 8, "mask_thr_binary": 0.5}
    return {
        "type": "MaskRCNN",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
            "pad_mask": True,
            "pad_size_divisor": 32,
        },
        "backbone": backbone_config(),
        "neck": {"type": "FPN", "in_channels": [8, 16], "out_channels": CHANNELS, "num_outs": 3},
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": CHANNELS,
            "feat_channels": CHANNELS,
            "anchor_generator": {"type": "AnchorGenerator", "scales": [4], "ratios": [1.0], "strides": [4, 8, 16]},
            "bbox_coder": {**coder, "target_stds": [1.0] * 4},
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": _extractor(7),
            "bbox_head": _box_head(coder),
            "mask_roi_extractor": _extractor(14),
            "mask_head": _mask_head(),
        },
        "train_cfg": None,
        "test_cfg": {"rpn": rpn, "rcnn": rcnn},
    }


def cascade_config() -> dict[str, Any]:
    """Two stages of boxes, the second with convolutions in front, and of masks."""
    config = mask_rcnn_config()
    coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4}
    convs = {"type": "ConvFCBBoxHead", "num_shared_convs": 1, "num_shared_fcs": 1, "conv_out_channels": CHANNELS,
             "norm_cfg": {"type": "BN"}, "loss_bbox": {"type": "GIoULoss"}, "reg_decoded_bbox": True}  # fmt: skip
    head = {"type": "CascadeRoIHead", "num_stages": 2, "stage_loss_weights": [1, 0.5]}
    head["bbox_head"] = [_box_head(coder), {**_box_head(coder), **convs}]
    return {**config, "type": "CascadeRCNN", "roi_head": {**config["roi_head"], **head}}


def build(config: dict[str, Any]) -> nn.Module:
    """The detector or part that mmdet builds from ``config``, with random weights."""
    import_mmdet()
    from mmdet.registry import MODELS
    from mmengine import ConfigDict

    torch.manual_seed(0)
    model: nn.Module = MODELS.build(ConfigDict(config))
    randomized(model)  # its result is of no use: `train` of mmdet's Swin returns nothing
    return model


def calibrated(model: nn.Module, images: torch.Tensor, bits: Bits) -> nn.Module:
    """``model`` quantized with ranges from ``images``, nothing tuned."""
    opened = DEFAULT_RECIPE.open(model, bits)
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.walk(images))
    fold_all(opened)
    switch(opened.model, weights=True, activations=True)
    calibrate_weights(opened.model)
    return opened.model


def _box_head(coder: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "Shared2FCBBoxHead",
        "in_channels": CHANNELS,
        "fc_out_channels": 16,
        "roi_feat_size": 7,
        "num_classes": 2,
        "reg_class_agnostic": True,
        "bbox_coder": {**coder, "target_stds": [0.1, 0.1, 0.2, 0.2]},
    }


def _mask_head() -> dict[str, Any]:
    return {
        "type": "FCNMaskHead",
        "num_convs": 1,
        "in_channels": CHANNELS,
        "conv_out_channels": CHANNELS,
        "num_classes": 2,
    }


def _extractor(size: int) -> dict[str, Any]:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 2},
        "out_channels": CHANNELS,
        "featmap_strides": [4, 8],
        "finest_scale": 16,
    }
