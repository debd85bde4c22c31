"""The shipped detector: a Mask R-CNN with a micro Swin and a small FPN, built by mmdet, for the scenes of digits."""

from importlib.resources import files
from typing import Any, Final

import torch
from safetensors.torch import load
from torch import nn

from detection.runtime import import_mmdet
from isvit_lightning.errors import IsvitError

WEIGHTS_FILE: Final = "mask_rcnn_swin_digits.safetensors"

_CHANNELS: Final = 64  # of the FPN and every head
_STRIDES: Final = [4, 8, 16]


def digits_detector_config() -> dict[str, Any]:
    """Mmdet's description of the detector, new at every call.

    Three Swin stages of 2 blocks (strides 4, 8 and 16; 32, 64 and 128 channels; windows of 4 x 4) under an FPN of 64
    channels; images are 128 x 128, though any size passes.
    """
    coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4}
    return {
        "type": "MaskRCNN",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [127.5, 127.5, 127.5],
            "std": [63.75, 63.75, 63.75],
            "bgr_to_rgb": True,
            "pad_mask": True,
            "pad_size_divisor": 32,
        },
        "backbone": {
            "type": "SwinTransformer",
            "embed_dims": 32,
            "depths": (2, 2, 2),
            "num_heads": (2, 4, 8),
            "strides": (4, 2, 2),
            "out_indices": (0, 1, 2),
            "window_size": 4,
            "drop_path_rate": 0.05,
        },
        "neck": {"type": "FPN", "in_channels": [32, 64, 128], "out_channels": _CHANNELS, "num_outs": 4},
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": _CHANNELS,
            "feat_channels": _CHANNELS,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [4],
                "ratios": [1.0, 1.6, 2.5],  # height by width: digits are tall
                "strides": [*_STRIDES, 32],
            },
            "bbox_coder": {**coder, "target_stds": [1.0] * 4},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True},
            "loss_bbox": {"type": "L1Loss"},
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": _roi_extractor(7),
            "bbox_head": {
                "type": "Shared2FCBBoxHead",
                "in_channels": _CHANNELS,
                "fc_out_channels": 256,
                "roi_feat_size": 7,
                "num_classes": 10,
                "reg_class_agnostic": True,
                "bbox_coder": {**coder, "target_stds": [0.1, 0.1, 0.2, 0.2]},
                "loss_cls": {"type": "CrossEntropyLoss"},
                "loss_bbox": {"type": "L1Loss"},
            },
            "mask_roi_extractor": _roi_extractor(14),
            "mask_head": {
                "type": "FCNMaskHead",
                "num_convs": 2,
                "in_channels": _CHANNELS,
                "conv_out_channels": _CHANNELS,
                "num_classes": 10,
                "class_agnostic": True,
                "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True},
            },
        },
        "train_cfg": _train_config(),
        "test_cfg": {
            "rpn": _proposals(before=200, after=50),
            "rcnn": {
                "score_thr": 0.05,
                "nms": {"type": "nms", "iou_threshold": 0.5},
                "max_per_img": 20,
                "mask_thr_binary": 0.5,
            },
        },
    }


def build_digits_detector() -> nn.Module:
    """The detector as mmdet builds it, without initial weights of any use.

    Raises:
        IsvitError: mmdet is not installed.
    """
    import_mmdet()
    from mmdet.registry import MODELS  # noqa: PLC0415 - importable only now
    from mmengine import ConfigDict  # noqa: PLC0415

    detector: nn.Module = MODELS.build(ConfigDict(digits_detector_config()))
    return detector


def digits_detector() -> nn.Module:
    """The detector with its trained weights, float32 and in evaluation mode.

    Raises:
        IsvitError: the installation lacks the weights, or mmdet.
    """
    detector = build_digits_detector()
    # The file holds float16; loading copies it into the float32 parameters.
    detector.load_state_dict(read_weights())
    return detector.eval()


def read_weights() -> dict[str, torch.Tensor]:
    """The shipped weights by parameter name, float16.

    Raises:
        IsvitError: the installation lacks them.
    """
    try:
        content = files(__package__).joinpath(WEIGHTS_FILE).read_bytes()
    except FileNotFoundError:
        raise IsvitError(
            f"{WEIGHTS_FILE} is missing from the installed package, expected it in detection/embedded: reinstall "
            "isvit_lightning, or write it with `python -m tools.train_detector`."
        ) from None
    return load(content)


def _roi_extractor(size: int) -> dict[str, Any]:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 2},
        "out_channels": _CHANNELS,
        "featmap_strides": _STRIDES,
        "finest_scale": 24,  # boxes up to 48 pixels are read at stride 4
    }


def _proposals(before: int, after: int) -> dict[str, Any]:
    return {
        "nms_pre": before,
        "max_per_img": after,
        "nms": {"type": "nms", "iou_threshold": 0.7},
        "min_bbox_size": 0,
    }


def _train_config() -> dict[str, Any]:
    """Assignment and sampling: mmdet's usual ones, with fewer samples for fewer objects."""
    return {
        "rpn": {
            "assigner": _assigner(positive=0.7, negative=0.3, least=0.3),
            "sampler": _sampler(number=128, positives=0.5, with_truth=False),
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "rpn_proposal": _proposals(before=300, after=80),
        "rcnn": {
            "assigner": _assigner(positive=0.5, negative=0.5, least=0.5),
            "sampler": _sampler(number=48, positives=0.25, with_truth=True),
            "mask_size": 28,
            "pos_weight": -1,
            "debug": False,
        },
    }


def _assigner(positive: float, negative: float, least: float) -> dict[str, Any]:
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": least,
        "match_low_quality": True,
        "ignore_iof_thr": -1,
    }


def _sampler(number: int, positives: float, with_truth: bool) -> dict[str, Any]:
    return {
        "type": "RandomSampler",
        "num": number,
        "pos_fraction": positives,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": with_truth,
    }
