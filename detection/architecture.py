"""How a float detector is built from plain values, by mmdet."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from torch import nn
from typing_extensions import override

from detection.runtime import import_mmdet
from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.sources.architecture import Architecture

_FROM_ELSEWHERE: Final = ("init_cfg", "pretrained")


@dataclass(frozen=True)
class DetectorArchitecture(Architecture):
    """How a detector is built, without its weights; plain values that can be stored.

    Args:
        name: type of the detector, for example MaskRCNN.
        args: the rest of mmdet's description of it.
    """

    pipeline_tag: ClassVar[str] = "object-detection"

    @classmethod
    def from_config(cls, model: dict[str, Any]) -> "DetectorArchitecture":
        """The architecture that mmdet's description names.

        Args:
            model: the section ``model`` of a configuration; where its initial weights come from is left out.

        Raises:
            IsvitError: it is not made of plain values.
        """
        try:
            plain: dict[str, Any] = json.loads(json.dumps(_without_sources(model)))
            return cls(str(plain.pop("type")), plain)
        except (TypeError, ValueError, KeyError) as error:
            raise IsvitError(
                f"The configuration describes no detector in plain values ({first_line(error)}), expected texts, "
                "numbers, lists and sections with a type: change model.network.config."
            ) from None

    @override
    def build(self, pretrained: bool = False) -> nn.Module:
        """The detector in evaluation mode, with random weights. No code of the description is run.

        Args:
            pretrained: not used; weights come from a file.

        Raises:
            IsvitError: mmdet is missing, or cannot build a detector that can be opened from the description.
        """
        import_mmdet()
        from mmdet.models.detectors import TwoStageDetector  # noqa: PLC0415
        from mmdet.registry import MODELS  # noqa: PLC0415 - importable only now
        from mmengine import ConfigDict  # noqa: PLC0415

        from detection.network import DetectorAdapter  # noqa: PLC0415

        description = {"type": self.name, **self.args}
        for kind in _types(description):
            if not kind.isidentifier():
                # A path would be imported, and mmcv evaluates the type of a suppression as Python.
                raise IsvitError(
                    f"The description of the detector names the type {kind!r}, expected a plain name that mmdet "
                    "registers: change model.network.config."
                )
        try:
            model: nn.Module = MODELS.build(ConfigDict(description))
        except Exception as error:  # noqa: BLE001 - constructors of mmdet raise almost anything
            raise IsvitError(
                f"mmdet cannot build {self.name} ({first_line(error)}), expected a configuration of mmdet 3.3: change "
                "model.network.config or model.network.overrides."
            ) from None
        if not isinstance(model, TwoStageDetector):
            raise IsvitError(
                f"{self.name} is no detector that can be opened, expected MaskRCNN, CascadeRCNN or FasterRCNN with a "
                "Swin backbone: change model.network.config."
            )
        DetectorAdapter(model)  # refuses what cannot be opened before weights are asked for
        return model.eval()


def _without_sources(value: Any) -> Any:
    """``value`` without the places that initial weights would be fetched from."""
    if isinstance(value, dict):
        return {key: _without_sources(inner) for key, inner in value.items() if key not in _FROM_ELSEWHERE}
    return [_without_sources(inner) for inner in value] if isinstance(value, list | tuple) else value


def _types(value: Any) -> Iterator[str]:
    """Every type that a description names."""
    if isinstance(value, dict):
        if isinstance(value.get("type"), str):
            yield value["type"]
        for inner in value.values():
            yield from _types(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _types(inner)
