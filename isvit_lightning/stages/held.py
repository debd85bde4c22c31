"""Weights that are quantized once for all micro-batches of a step."""

from collections.abc import Sequence
from types import TracebackType

import torch

from isvit_lightning.stages.trainables import TrainedWeight


class HeldWeights:
    """Quantized weights of a unit while a step is made, as a context manager.

    Inside, layers multiply by weights that were quantized on entry, and micro-batches differentiate towards those. One
    backward pass through the quantizers, which is linear in the gradient, then takes the sum on to what is tuned: the
    same gradient, bit for bit, for less work.

    Args:
        weights: those of the unit that are to be held.
    """

    def __init__(self, weights: Sequence[TrainedWeight]) -> None:
        self._weights = list(weights)
        self._leaves = [torch.empty_like(weight.tensor).requires_grad_() for weight in self._weights]
        self._quantized: list[torch.Tensor] = []

    def stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """What micro-batches differentiate towards in the place of ``tensor``; itself if that is no held weight."""
        leaves = (leaf for weight, leaf in zip(self._weights, self._leaves, strict=True) if weight.tensor is tensor)
        return next(leaves, tensor)

    def __enter__(self) -> None:
        """Quantize the weights as they are now, and hand them to their quantizers."""
        self._quantized = [weight.quantize() for weight in self._weights]
        for weight, leaf, quantized in zip(self._weights, self._leaves, self._quantized, strict=True):
            with torch.no_grad():
                leaf.copy_(quantized)
            weight.quantizer.held = leaf

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let the quantizers quantize again."""
        for weight in self._weights:
            weight.quantizer.held = None

    def differentiate(self) -> None:
        """Take the gradients of the stand-ins to what is tuned."""
        for weight, leaf, quantized in zip(self._weights, self._leaves, self._quantized, strict=True):
            (weight.tensor.grad,) = torch.autograd.grad(quantized, weight.tensor, leaf.grad)
        self._quantized.clear()
