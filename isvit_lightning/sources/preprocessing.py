"""From a decoded image to the input of a network."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, cast, get_args

from PIL.Image import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.architecture import Architecture

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
Triple = tuple[float, float, float]

_EMBEDDED: Final = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to a network's input.

    Args:
        input_size: channels, height and width of the input.
        mean: mean of each channel, subtracted from values in [0, 1].
        std: standard deviation of each channel, divided by.
        interpolation: how images are resized.
        crop_pct: side of the central crop relative to the resized image.
        crop_mode: how timm crops: center, squash or border.
    """

    input_size: tuple[int, int, int]
    mean: Triple
    std: Triple
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        """Refuse values with which no image could be transformed.

        Raises:
            IsvitError: a value is out of its range.
        """
        if not (_three_numbers(self.input_size) and min(self.input_size) > 0):
            raise IsvitError(
                f"The input size is {self.input_size}, expected channels, height and width above zero: correct "
                "input_size in model.network.description."
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not _three_numbers(values) or (name == "std" and min(values) <= 0):
                raise IsvitError(
                    f"The preprocessing has {name} {values}, expected three finite numbers"
                    f"{', each above zero' if name == 'std' else ''}: correct model.network.{name}."
                )
        if self.interpolation not in get_args(Interpolation):
            raise IsvitError(
                f"The preprocessing has interpolation {self.interpolation!r}, expected one of "
                f"{', '.join(get_args(Interpolation))}: correct model.network.interpolation."
            )
        if not (isinstance(self.crop_pct, (int, float)) and 0 < self.crop_pct < math.inf):
            raise IsvitError(
                f"The preprocessing has crop_pct {self.crop_pct}, expected a number above zero, usually 0.8 to 1: "
                "correct model.network.crop_pct."
            )

    def transform(self) -> Callable[[Image], Tensor]:
        """Timm's evaluation transform, from an RGB image to a float32 tensor ``(3, height, width)``."""
        return cast("Callable[[Image], Tensor]", create_transform(**asdict(self), is_training=False))

    @classmethod
    def of(cls, model: nn.Module) -> "Preprocessing":
        """What the metadata of a timm network asks for, or what a network that ships with the package expects.

        Args:
            model: network; its own image size wins over its metadata, which names the size of its pretrained weights.
        """
        config: dict[str, Any] = resolve_model_data_config(model)
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        if size is not None:
            config["input_size"] = (config["input_size"][0], *size)
        if not getattr(model, "pretrained_cfg", None) and Architecture.of(model) is not None:
            config |= _EMBEDDED
        return cls(**config)


def _three_numbers(values: object) -> bool:
    """Whether ``values``, which may come from a file, is a triple of finite numbers."""
    numbers = isinstance(values, tuple) and all(isinstance(value, (int, float)) for value in values)
    return numbers and len(cast("Triple", values)) == 3 and all(map(math.isfinite, cast("Triple", values)))
