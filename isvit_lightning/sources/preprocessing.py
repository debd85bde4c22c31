"""From a decoded image to the input of a network."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import mean
from typing import Any, Final, Literal, cast, get_args

from PIL.Image import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.architecture import Architecture

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
PerChannel = tuple[float, ...]
"""A number for each channel of an image."""

_EMBEDDED: Final = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to a network's input.

    Args:
        input_size: channels, height and width of the input; images have one channel, which is gray, or three.
        mean: mean of each channel, subtracted from values in [0, 1].
        std: standard deviation of each channel, divided by.
        interpolation: how images are resized.
        crop_pct: side of the central crop relative to the resized image.
        crop_mode: how timm crops: center, squash or border.
    """

    input_size: tuple[int, int, int]
    mean: PerChannel
    std: PerChannel
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        """Refuse values with which no image could be transformed.

        Raises:
            IsvitError: a value is out of its range.
        """
        if not is_input_size(self.input_size):
            raise IsvitError(
                f"The input size is {self.input_size}, expected channels, height and width above zero: correct "
                "input_size in model.network.description."
            )
        channels = self.input_size[0]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not _numbers(values, channels) or (name == "std" and min(values) <= 0):
                raise IsvitError(
                    f"The preprocessing has {name} {values}, expected a finite number for each of {channels} channels"
                    f"{', above zero' if name == 'std' else ''}: correct model.network.{name}."
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
        """Timm's evaluation transform, from an RGB image to a float32 tensor ``(channels, height, width)``.

        Raises:
            IsvitError: the network reads something else than images.
        """
        require_image_channels(self.input_size[0])
        prepare = cast("Callable[[Image], Tensor]", create_transform(**asdict(self), is_training=False))
        return partial(_prepare_gray, prepare) if self.input_size[0] == 1 else prepare

    @classmethod
    def of(cls, model: nn.Module) -> "Preprocessing":
        """What the metadata of a timm network asks for, or what a network that ships with the package expects.

        Args:
            model: network; its own channels and image size win over its metadata, which describes its pretrained
                weights. A mean and a standard deviation of other channels are averaged, as timm's loader does.
        """
        config: dict[str, Any] = resolve_model_data_config(model)
        embed = getattr(model, "patch_embed", None)
        channels = getattr(getattr(embed, "proj", None), "in_channels", config["input_size"][0])
        size = getattr(embed, "img_size", None) or config["input_size"][1:]
        config["input_size"] = (channels, *size)
        for name in ("mean", "std"):
            if len(config[name]) != channels:
                config[name] = (mean(config[name]),) * channels
        if not getattr(model, "pretrained_cfg", None) and Architecture.of(model) is not None:
            config |= _EMBEDDED
        return cls(**config)


def is_input_size(size: object) -> bool:
    """Whether ``size``, which may come from a file, can be channels, height and width."""
    return isinstance(size, tuple) and len(size) == 3 and all(isinstance(side, int) and side > 0 for side in size)


def require_image_channels(channels: object) -> None:
    """Refuse a network that reads no images of the usual kinds.

    Raises:
        IsvitError: its input has neither one nor three channels.
    """
    if channels not in (1, 3):
        raise IsvitError(
            f"The network reads inputs of {channels} channels, expected 1 (gray) or 3 (red, green and blue): change "
            "in_chans in model.network.args, or in model_args of model.network.description."
        )


def _prepare_gray(prepare: Callable[[Image], Tensor], image: Image) -> Tensor:
    """The one channel of an image that was read as RGB; where it was gray in its file, exactly its values there."""
    return prepare(image.convert("L"))


def _numbers(values: object, count: int) -> bool:
    """Whether ``values``, which may come from a file, is a tuple of ``count`` finite numbers."""
    numbers = isinstance(values, tuple) and all(isinstance(value, (int, float)) for value in values)
    return numbers and len(cast("PerChannel", values)) == count and all(map(math.isfinite, cast("PerChannel", values)))
