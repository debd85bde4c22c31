"""Weights that are quantized once for all micro-batches of a step."""

from collections.abc import Sequence
from types import TracebackType

import torch

from isvit_lightning.layers import QuantConv2d, QuantLinear


class HeldWeights:
    """Quantized weights of a unit while a step is made, as a context manager.

    Inside, layers multiply by weights that were quantized on entry, and micro-batches differentiate towards those. One
    backward pass through the quantizers, which is linear in the gradient, then takes the sum on to the weights: the
    same gradient, bit for bit, for less work.

    Args:
        layers: those of the unit. Where the quantizer of a weight is switched off, nothing is held.
    """

    def __init__(self, layers: Sequence[QuantLinear | QuantConv2d]) -> None:
        self._layers = [layer for layer in layers if layer.weight_quantizer.enabled]
        self._leaves = [torch.empty_like(layer.weight).requires_grad_() for layer in self._layers]
        self._quantized: list[torch.Tensor] = []

    def stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """What micro-batches differentiate towards in the place of ``tensor``; itself if that is no held weight."""
        found = (leaf for layer, leaf in zip(self._layers, self._leaves, strict=True) if layer.weight is tensor)
        return next(found, tensor)

    def __enter__(self) -> None:
        """Quantize the weights as they are now, and hand them to the layers."""
        self._quantized = [layer.weight_quantizer(layer.weight) for layer in self._layers]
        for layer, leaf, quantized in zip(self._layers, self._leaves, self._quantized, strict=True):
            with torch.no_grad():
                leaf.copy_(quantized)
            layer.held_weight = leaf

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let the layers quantize their weights themselves again."""
        for layer in self._layers:
            layer.held_weight = None

    def differentiate(self) -> None:
        """Take the gradients of the stand-ins to the weights."""
        for layer, leaf, quantized in zip(self._layers, self._leaves, self._quantized, strict=True):
            (layer.weight.grad,) = torch.autograd.grad(quantized, layer.weight, leaf.grad)
        self._quantized.clear()
