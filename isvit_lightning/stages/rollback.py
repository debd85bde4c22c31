"""The way back from a loss that is no number."""

from collections.abc import Sequence

import torch

CHECKS = 10
"""How many states of a unit are considered while it is tuned."""


class BestState:
    """The best of the states of some tensors that were offered, to go back to.

    Nothing here reads a number from the accelerator but :meth:`finite`, so that a step never waits for it.

    Args:
        tensors: what is tuned; their present values are what is kept at first.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.tensors = list(tensors)
        self.kept = [tensor.detach().clone() for tensor in self.tensors]
        self.loss = torch.full((), torch.inf, device=self.tensors[0].device)

    @torch.no_grad()
    def offer(self, loss: torch.Tensor) -> None:
        """Keep the present values if ``loss``, a scalar that they gave, is the smallest so far; NaN never is."""
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        for kept, tensor in zip(self.kept, self.tensors, strict=True):
            torch.where(better, tensor, kept, out=kept)

    @torch.no_grad()
    def finite(self, loss: torch.Tensor) -> bool:
        """Whether ``loss`` and all present values are numbers."""
        flags = [torch.isfinite(tensor).all() for tensor in (loss, *self.tensors)]
        return bool(torch.stack(flags).all())

    @torch.no_grad()
    def restore(self) -> None:
        """Give the tensors the values that were kept."""
        for kept, tensor in zip(self.kept, self.tensors, strict=True):
            tensor.copy_(kept)

    def let_go(self) -> None:
        """Forget what was kept, when nothing can go wrong any more."""
        self.kept.clear()
        self.tensors.clear()
