"""Losses of several terms, each relative to what it was at first."""

from collections.abc import Callable, Sequence

import torch

from isvit_lightning.networks import SINGLE, Data
from isvit_lightning.stages.losses.loss import Surroundings, UnitLoss
from isvit_lightning.stages.losses.means import image_means
from isvit_lightning.stages.passes import moved

Terms = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Sequence[torch.Tensor]]
"""Terms ``(batch,)`` of the outputs ``(batch, …)`` of some images, given the targets and the places of the images."""


class RelativeLoss(UnitLoss):
    """A weighted sum of terms, each divided by its mean over images before the unit is tuned.

    Args:
        around: the unit, which gives a single tensor.
        images: how many calibration images that mean is taken of.
        weights: one for each term, or one for all.
        terms: what is summed.
    """

    def __init__(self, around: Surroundings, images: int, weights: Sequence[float] | float, terms: Terms) -> None:
        super().__init__(self._sum)
        self._around, self._images, self._weights = around, images, weights
        self.take(terms)

    @torch.no_grad()
    def take(self, terms: Terms) -> None:
        """Take these terms, relative to what they are at present, from now on."""

        def of(rows: torch.Tensor) -> Sequence[torch.Tensor]:
            wanted = moved(self._around.targets[rows], self._around.device)
            return terms(self._around.outputs(rows)[SINGLE], wanted[SINGLE], rows)

        self._terms = terms
        # A term that is zero stays zero.
        self._first = [
            each.clamp_min(torch.finfo(each.dtype).tiny) for each in image_means(self._around, self._images, of)
        ]

    def _sum(self, outputs: Data, wanted: Data, places: torch.Tensor) -> torch.Tensor:
        terms = self._terms(outputs[SINGLE], wanted[SINGLE], places)
        shares = torch.stack([term.mean() / first for term, first in zip(terms, self._first, strict=True)])
        return (shares * torch.as_tensor(self._weights, dtype=shares.dtype, device=shares.device)).sum()
