"""Losses of several terms, each relative to what it was at first."""

from collections.abc import Callable, Sequence

import torch

from isvit_lightning.networks import SINGLE, Data
from isvit_lightning.stages.losses.loss import Surroundings, UnitLoss, Value
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
        self._around, self._images = around, images
        self._weights = torch.as_tensor(weights, device=around.device)
        super().__init__(self._relative(terms))

    def take(self, terms: Terms) -> None:
        """Take these terms, relative to what they are at present, from now on."""
        self._value = self._relative(terms)

    @torch.no_grad()
    def _relative(self, terms: Terms) -> Value:
        around, weights = self._around, self._weights

        def present(rows: torch.Tensor) -> Sequence[torch.Tensor]:
            wanted = moved(around.targets[rows], around.device)
            return terms(around.outputs(rows)[SINGLE], wanted[SINGLE], rows)

        # A term that is zero stays zero.
        first = [each.clamp_min(torch.finfo(each.dtype).tiny) for each in image_means(around, self._images, present)]

        # Without a reference to the loss: a circle would keep the caches of a unit until they are collected.
        def value(outputs: Data, wanted: Data, places: torch.Tensor) -> torch.Tensor:
            found = terms(outputs[SINGLE], wanted[SINGLE], places)
            return (torch.stack([term.mean() / each for term, each in zip(found, first, strict=True)]) * weights).sum()

        return value
