"""Gradients that lie in one vector."""

from collections.abc import Sequence

import torch


class FlatGradients:
    """Gradients of some tensors as views of one vector, which one transfer sums over processes.

    The vector stays for as long as the tensors are tuned: vectors that come and go at each step would lie between the
    activations and leave holes in the heap.

    Args:
        tensors: what is tuned, on one device and of one type.

    Attributes:
        vector: all gradients in order, and one number behind them for the loss.
        loss: view of that number, a scalar.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.tensors = list(tensors)
        sizes = [tensor.numel() for tensor in self.tensors]
        self.vector = torch.zeros(sum(sizes) + 1, dtype=self.tensors[0].dtype, device=self.tensors[0].device)
        *parts, loss = torch.split(self.vector, [*sizes, 1])
        self._views = [part.view_as(tensor) for part, tensor in zip(parts, self.tensors, strict=True)]
        self.loss = loss.view(())

    def collect(self) -> None:
        """Set the vector to zero and let the gradients of the tensors gather in it."""
        self.vector.zero_()
        self.attach()

    def attach(self) -> None:
        """Make the vector the gradients of the tensors."""
        for tensor, view in zip(self.tensors, self._views, strict=True):
            tensor.grad = view
