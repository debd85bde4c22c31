"""What an estimator of curvature measures with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from isvit_lightning.networks import SINGLE
from isvit_lightning.stages.losses.divergence import divergence
from isvit_lightning.stages.losses.loss import Suffix, Surroundings
from isvit_lightning.stages.losses.means import Terms, image_means
from isvit_lightning.stages.passes import moved


@dataclass(frozen=True)
class Probe:
    """Outputs of a unit, and gradients of the divergence of the network's probabilities by them.

    Args:
        around: the unit, which gives a single tensor.
        suffix: the float network behind it.
        temperature: what logits are divided by.
        images: calibration images that means are taken of.
    """

    around: Surroundings
    suffix: Suffix
    temperature: float
    images: int

    def wanted(self, rows: torch.Tensor) -> torch.Tensor:
        """What the float unit gives for the images at ``rows``, ``(batch, …)``."""
        return moved(self.around.targets[rows], self.around.device)[SINGLE]

    def given(self, rows: torch.Tensor) -> torch.Tensor:
        """What the quantized unit gives for them at present."""
        return self.around.outputs(rows)[SINGLE]

    @torch.enable_grad()
    def gradient(self, wanted: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """Gradient ``(batch, …)`` of each image's divergence in nats from the float network's, by its ``outputs``.

        Args:
            wanted: what the float unit gives, ``(batch, …)``.
            outputs: where the gradient is taken.
        """
        with torch.no_grad():
            logits = self.suffix.logits(wanted) / self.temperature
        point = outputs.detach().clone().requires_grad_()
        distance = divergence(logits, self.suffix.logits(point) / self.temperature).sum()
        (gradient,) = torch.autograd.grad(distance, point)
        return gradient

    def errors(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the outputs of the images at ``rows`` are off by, and the gradient there, ``(batch, …)`` each."""
        wanted, given = self.wanted(rows), self.given(rows)
        return given - wanted, self.gradient(wanted, given)

    def means(self, terms: Terms) -> Sequence[torch.Tensor]:
        """Means over images; see :func:`image_means`."""
        return image_means(self.around, self.images, terms)
