"""Where a float detector comes from: mmdet's configurations and a checkpoint, or the package itself."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from detection import zoo
from detection.architecture import DetectorArchitecture
from detection.embedded.network import read_weights as read_embedded
from detection.runtime import import_mmdet
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources import checkpoint
from isvit_lightning.sources.paths import expand_path
from isvit_lightning.sources.source import LoadedNetwork, drawn_from_seed, fingerprint
from isvit_lightning.sources.weights import StoredWeights, read_weights

_CLASS_SCORES = ("roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.0.fc_cls.weight")
_OPTIONS = "model.network.checkpoint, model.network.config or model.network.overrides"


@dataclass(frozen=True)
class DetectorSource:
    """Which float detector is quantized.

    ``$NAME``, ``${NAME}`` and ``~`` in paths are replaced; ISVIT_DATA is ../shared/data where it is not set.

    Args:
        config: mask_rcnn_swin_digits, which ships with its weights; mask_rcnn_swin_tiny, mask_rcnn_swin_small,
            cascade_mask_rcnn_swin_tiny or cascade_mask_rcnn_swin_small; the name of a configuration that mmdet ships,
            such as mask-rcnn_swin-t-p4-w7_fpn_1x_coco; or a configuration file of mmdet (a .py file is run).
        pretrained: load the weights of checkpoint, or those that ship with the package; false gives random weights.
        checkpoint: .safetensors or torch file with the weights, of mmdet or of the original Swin repository.
        checkpoint_key: name under which the weights lie in the file, for example ema_state_dict, in place of the first
            of state_dict_ema, model_ema, state_dict and model.
        trust_checkpoint: read a torch file that holds more than tensors, which may run code that it brings.
        classes: number of classes, in place of the configuration's own.
        overrides: sections of mmdet's description of the model to change, for example {backbone: {window_size: 7}}.
    """

    config: str = ""
    pretrained: bool = True
    checkpoint: str | None = None
    checkpoint_key: str | None = None
    trust_checkpoint: bool = False
    classes: int | None = None
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the detector is called in results."""
        return Path(self.config).stem if self.config.endswith(".py") else self.config

    def build(self) -> LoadedNetwork:
        """Construct the detector and load its weights.

        Raises:
            IsvitError: mmdet is missing, or the configuration, an override or the checkpoint is wrong.
        """
        import_mmdet()
        from detection.data.preprocessing import DetectorPreprocessing  # noqa: PLC0415 - imports mmcv

        if not self.config:
            raise IsvitError(
                "No detector is named, expected mask_rcnn_swin_digits or a configuration of mmdet: set "
                "model.network.config."
            )
        config = zoo.merged(zoo.model_config(self.config), self.overrides)
        architecture = DetectorArchitecture.from_config(_with_classes(config, self.classes))
        embedded = self.config == zoo.EMBEDDED and not self.checkpoint
        if self.pretrained and not (embedded or self.checkpoint):
            raise IsvitError(
                f"{self.title} comes without weights, expected a file that holds them: set model.network.checkpoint, "
                "or model.network.pretrained to false for random weights."
            )
        with contextlib.nullcontext() if self.pretrained else drawn_from_seed():
            model = architecture.build()
        if self.pretrained:
            weights = (
                StoredWeights(Path(f"the weights of {zoo.EMBEDDED}"), read_embedded())
                if embedded
                else read_weights(expand_path(self.checkpoint or ""), self.trust_checkpoint, self.checkpoint_key)
            )
            load_weights(model, weights, self.title)
            cast("Any", model).dataset_meta = {"classes": class_names(weights.content)}  # where mmdet itself keeps them
        return LoadedNetwork(model, DetectorPreprocessing.of(model), fingerprint(self.title, model), architecture)


def load_weights(model: nn.Module, weights: StoredWeights, name: str) -> None:
    """Load the weights of mmdet or of the original Swin repository, all of them and nothing else.

    Args:
        model: detector.
        weights: what to load.
        name: what the detector is called in messages.

    Raises:
        IsvitError: they belong to another detector, or to one of other classes.
    """
    state, own = from_original(weights.tensors), model.state_dict()
    for key in _CLASS_SCORES:
        if key in own and key in state and len(own[key]) != len(state[key]):
            raise IsvitError(
                f"{weights.path} knows {len(state[key]) - 1} classes but {name} has {len(own[key]) - 1}, expected as "
                "many: set model.network.classes or change model.network.checkpoint."
            )
    checkpoint.load_weights(model, replace(weights, tensors=state), name, lambda _: f"change {_OPTIONS}")


def class_names(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes in a checkpoint of mmdet, in the detector's order; none where it tells none.

    Args:
        content: all that the file holds.
    """
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    described = meta.get("dataset_meta")
    names: Any = described.get("classes") if isinstance(described, Mapping) else meta.get("CLASSES")
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def from_original(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``state`` in mmdet's names and order of merged patches, where it is in the original Swin repository's.

    Args:
        state: tensors of a whole detector by name.
    """
    from mmdet.models.backbones.swin import swin_converter  # noqa: PLC0415 - importable only with the extra

    prefix = "backbone."
    if not any(key.startswith(f"{prefix}layers.") for key in state):
        return state
    backbone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    rest = {key: value for key, value in state.items() if not key.startswith(prefix)}
    converted: dict[str, Tensor] = swin_converter(backbone)
    return {**{key: value for key, value in converted.items() if not key.endswith("attn_mask")}, **rest}


def _with_classes(config: dict[str, Any], classes: int | None) -> dict[str, Any]:
    """``config`` with the number of classes of every head replaced."""
    if classes is None or not isinstance(config.get("roi_head"), dict):
        return config
    if classes < 1:
        raise IsvitError(f"model.network.classes is {classes}, expected at least 1: change it there.")
    heads = {
        key: [{**head, "num_classes": classes} for head in value]
        if isinstance(value, list)
        else {**value, "num_classes": classes}
        for key, value in config["roi_head"].items()
        if key in ("bbox_head", "mask_head")
    }
    return {**config, "roi_head": {**config["roi_head"], **heads}}
