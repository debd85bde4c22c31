"""Detectors by name: those of mmdet's wheel, those of the paper that it lacks, and the one that ships with weights."""

import difflib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from detection.embedded.network import digits_detector_config
from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.sources.paths import expand_path

EMBEDDED: Final = "mask_rcnn_swin_digits"
"""Name of the detector that ships with its weights."""

_CASCADE: Final = "_base_/models/cascade-mask-rcnn_r50_fpn.py"
_MASK: Final = "_base_/models/mask-rcnn_r50_fpn.py"
_BOX_SPREADS: Final = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])


def model_config(name: str) -> dict[str, Any]:
    """Mmdet's description of a detector, as plain values.

    Args:
        name: a configuration file, the name of one that mmdet ships (``mask-rcnn_swin-t-p4-w7_fpn_1x_coco``), or one
            of this module's own names.

    Raises:
        IsvitError: there is no such name or file, or it describes no detector.
    """
    if name in _NAMED:
        return _NAMED[name]()
    path = expand_path(name)
    return read_model(path if path.is_file() else _shipped(name))


def read_model(path: Path) -> dict[str, Any]:
    """The model section of a configuration file of mmdet. A .py file is run.

    Raises:
        IsvitError: the file cannot be read or has no such section.
    """
    from mmengine.config import Config  # noqa: PLC0415 - importable only with the extra

    try:
        model = Config.fromfile(str(path)).get("model")
    except Exception as error:  # noqa: BLE001 - a configuration is a program and may raise anything
        raise IsvitError(
            f"{path} cannot be read as a configuration of mmdet ({first_line(error)}), expected its .py, .json or "
            ".yaml format: change model.network.config."
        ) from None
    if model is None:
        raise IsvitError(
            f"{path} describes no detector: it has no section model, expected a configuration of mmdet: change "
            "model.network.config."
        )
    return dict(model.to_dict())


def merged(model: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``model`` with ``changes``, section by section as mmdet merges them; ``_delete_: true`` replaces a section.

    Raises:
        IsvitError: a change does not fit.
    """
    from mmengine.config import Config  # noqa: PLC0415 - importable only with the extra

    config = Config({"model": model})
    try:
        config.merge_from_dict({"model": changes})
    except (TypeError, KeyError, AssertionError) as error:
        raise IsvitError(
            f"The overrides do not fit the detector ({first_line(error)}), expected sections of its model: change "
            "model.network.overrides."
        ) from None
    return dict(config.model.to_dict())


def _shipped(name: str) -> Path:
    """A configuration in mmdet's wheel."""
    root = _mmdet_configs()
    paths = {path.stem: path for path in sorted(root.rglob("*.py"))}
    stem = Path(name).stem if name.endswith(".py") else Path(name).name
    if stem in paths:
        return paths[stem]
    near = difflib.get_close_matches(stem, [*paths, *_NAMED], n=3)
    raise IsvitError(
        f"There is no configuration {name}, expected a file, a name that mmdet ships or one of {', '.join(_NAMED)}"
        f"{f', such as {near[0]}' if near else ''}: change model.network.config."
    )


def _mmdet_configs() -> Path:
    spec = find_spec("mmdet")
    if spec is None or spec.origin is None:
        raise IsvitError('mmdet is not installed, expected it: run pip install "isvit-lightning[detection]".')
    return Path(spec.origin).parent / ".mim" / "configs"


def _swin(depths: list[int]) -> dict[str, Any]:
    return {
        "backbone": {
            "_delete_": True,
            "type": "SwinTransformer",
            "embed_dims": 96,
            "depths": depths,
            "num_heads": [3, 6, 12, 24],
            "window_size": 7,
            "drop_path_rate": 0.2,
        },
        "neck": {"in_channels": [96, 192, 384, 768]},
    }


def _mask_rcnn(depths: list[int]) -> dict[str, Any]:
    return merged(read_model(_mmdet_configs() / _MASK), _swin(depths))


def _cascade(depths: list[int]) -> dict[str, Any]:
    """Box heads of four convolutions and one linear layer, as in the paper's Cascade checkpoints (giou_4conv1f)."""
    heads = [
        {
            "type": "ConvFCBBoxHead",
            "num_shared_convs": 4,
            "num_shared_fcs": 1,
            "in_channels": 256,
            "conv_out_channels": 256,
            "fc_out_channels": 1024,
            "roi_feat_size": 7,
            "num_classes": 80,
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": spread},
            "reg_class_agnostic": False,
            "reg_decoded_bbox": True,
            "norm_cfg": {"type": "BN"},
            "loss_cls": {"type": "CrossEntropyLoss"},
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 10.0},
        }
        for spread in _BOX_SPREADS
    ]
    changes = {**_swin(depths), "roi_head": {"bbox_head": heads}}
    return merged(read_model(_mmdet_configs() / _CASCADE), changes)


_NAMED: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    EMBEDDED: digits_detector_config,
    "mask_rcnn_swin_tiny": lambda: _mask_rcnn([2, 2, 6, 2]),
    "mask_rcnn_swin_small": lambda: _mask_rcnn([2, 2, 18, 2]),
    "cascade_mask_rcnn_swin_tiny": lambda: _cascade([2, 2, 6, 2]),
    "cascade_mask_rcnn_swin_small": lambda: _cascade([2, 2, 18, 2]),
}
