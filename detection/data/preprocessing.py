"""From a decoded image to the input of a detector, pixel for pixel as mmdet does it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import mmcv
import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.preprocessing import PerChannel, Preprocessing

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""An image ``(height, width, 3)`` uint8 in mmdet's order of channels: blue, green, red."""


@dataclass(frozen=True)
class DetectorPreprocessing(Preprocessing):
    """What a detector expects to be done to images.

    Args:
        input_size: channels, height and width of the canvas on which a calibration image is placed.
        mean: mean of each channel in the network's order, subtracted from values in [0, 1].
        std: standard deviation of each channel, divided by.
        interpolation: how images are resized; mmdet's default, bilinear, is the only one.
        bgr_to_rgb: whether the network sees red first; mmdet reads images with blue first.
        divisor: height and width of every input are multiples of it.
    """

    interpolation: str = "bilinear"
    bgr_to_rgb: bool = True
    divisor: int = 32

    @classmethod
    @override
    def of(cls, model: nn.Module) -> "DetectorPreprocessing":
        """What the data preprocessor of an mmdet detector does, on the smallest canvas.

        Args:
            model: detector; data modules put their canvas in place of the smallest.

        Raises:
            IsvitError: the network is no mmdet detector.
        """
        own: Any = getattr(model, "data_preprocessor", None)
        if not hasattr(own, "pad_size_divisor"):
            raise IsvitError(
                f"A {type(model).__name__} has no data preprocessor of mmdet, expected an mmdet detector: change "
                "model.network."
            )
        mean, std = (0.0,) * 3, (1.0,) * 3
        if hasattr(own, "mean"):
            mean, std = own.mean.flatten().tolist(), own.std.flatten().tolist()
        return cls(
            input_size=(3, own.pad_size_divisor, own.pad_size_divisor),
            mean=_shares(mean),
            std=_shares(std),
            bgr_to_rgb=bool(getattr(own, "_channel_conversion", False)),
            divisor=int(own.pad_size_divisor),
        )

    @override
    def transform(self) -> Callable[[Image], Tensor]:
        """From an RGB image to the canvas ``(3, height, width)`` float32.

        The image is resized to fit without a change of its proportions, normalized, and only then padded with zeros on
        the right and below, as mmdet pads.
        """
        return self._on_canvas

    def _on_canvas(self, image: Image) -> Tensor:
        canvas = torch.zeros(self.input_size)
        pixels = to_pixels(image)
        height, width = pixels.shape[:2]
        scale = min(self.input_size[1] / height, self.input_size[2] / width)
        # Rounded as mmcv does; a sliver of an image keeps one pixel.
        size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
        inside = self._normalized(cast("Pixels", mmcv.imresize(pixels, size, interpolation=self.interpolation)))
        canvas[:, : inside.shape[1], : inside.shape[2]] = inside
        return canvas

    def _normalized(self, pixels: Pixels) -> Tensor:
        image = to_tensor(pixels).float()
        if self.bgr_to_rgb:
            image = image.flip(0)
        mean, std = (torch.tensor([255 * value for value in values])[:, None, None] for values in (self.mean, self.std))
        return (image - mean) / std


def to_pixels(image: Image) -> Pixels:
    """Pixels of an RGB image in mmdet's order."""
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


def to_tensor(pixels: Pixels) -> Tensor:
    """Pixels as mmdet's pipelines pack them: ``(3, height, width)`` uint8, the order of channels kept."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def rescaled(pixels: Pixels, scale: tuple[int, int]) -> Pixels:
    """Pixels as mmdet's ``Resize(scale=scale, keep_ratio=True)`` leaves them.

    Args:
        pixels: the image.
        scale: longest longer side and longest shorter side, whichever binds first.
    """
    return cast("Pixels", mmcv.imrescale(pixels, scale))


def _shares(values: Any) -> PerChannel:
    """Numbers on mmdet's scale of 0 to 255 as shares of it."""
    return tuple(float(value) / 255 for value in values)
