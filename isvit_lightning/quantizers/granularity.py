"""Which elements of a tensor share one scale."""

from dataclasses import dataclass

import torch

from isvit_lightning.errors import IsvitError

_MOST = 2**31


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor: parameters of shape ``()``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of scale and zero point; it broadcasts against the quantized tensor."""
        return ()

    def group(self, tensor: torch.Tensor) -> torch.Tensor:
        """Flatten ``tensor`` of any shape to ``(1, elements)``."""
        return tensor.reshape(1, -1)

    def __str__(self) -> str:
        return "per tensor"


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index of one axis.

    The axis is counted from the end, so that tokens ``(batch, tokens, channels)``, channels-last maps ``(batch, height,
    width, channels)`` and flat features ``(batch, channels)`` all have their channels at ``axis=-1``. Examples: input
    of a linear layer ``PerChannel(in_features)``, its weight ``PerChannel(out_features, axis=-2)``, a convolution
    weight ``PerChannel(out_channels, axis=-4)``.

    Args:
        size: number of indices of the axis.
        axis: negative axis number.
    """

    size: int
    axis: int = -1

    def __post_init__(self) -> None:
        if self.axis >= 0:
            raise IsvitError(f"The axis of PerChannel is counted from the end; got {self.axis}, expected -1 or less.")
        if not 0 < self.size < _MOST:
            raise IsvitError(f"A quantizer has {self.size} scales, expected 1 or more: correct its granularity.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of scale and zero point; it broadcasts against the quantized tensor."""
        return (self.size, *(1 for _ in range(-self.axis - 1)))

    def group(self, tensor: torch.Tensor) -> torch.Tensor:
        """Reorder ``tensor`` to ``(size, elements per index)``.

        Raises:
            IsvitError: the tensor's axis has another size.
        """
        if tensor.dim() < -self.axis or tensor.shape[self.axis] != self.size:
            raise IsvitError(
                f"A quantizer with {self.size} scales on axis {self.axis} got a tensor of shape "
                f"{tuple(tensor.shape)}; expected {self.size} entries there: open the network again for this input."
            )
        return tensor.movedim(self.axis, 0).reshape(self.size, -1)

    def __str__(self) -> str:
        return f"per head({self.size})" if self.axis == -3 else f"per channel({self.axis})"


def per_head(heads: int) -> PerChannel:
    """One scale per attention head, for tensors ``(batch, heads, tokens, …)``."""
    return PerChannel(heads, axis=-3)


Granularity = PerTensor | PerChannel
