"""How far an engine is from the simulated network."""

from dataclasses import dataclass

import torch
from torch import nn

_CHANGE = 1e-6
"""Relative change of the images that measures how much of a difference is rounding alone."""


@dataclass(frozen=True)
class Distance:
    """Logits of an engine beside those of the simulated network.

    A number on the edge between two codes gets one or the other by the last bit of a sum, and each such code moves
    later ones. No two engines, nor one with another number of threads, agree better than the network agrees with
    itself when its images change in their last bits: ``floor`` tells how well that is.

    Args:
        images: how many were compared.
        largest: difference of two logits.
        agreement: share of the images with the same class.
        floor: share of the images with the same class where the simulated network sees them changed by a millionth.
    """

    images: int
    largest: float
    agreement: float
    floor: float

    def __str__(self) -> str:
        return (
            f"the same class as the simulated network on {self.agreement:.1%} of {self.images} images, which itself "
            f"keeps it on {self.floor:.1%} when they change by a millionth; logits differ by up to {self.largest:.2g}"
        )


@torch.inference_mode()
def distance(engine: nn.Module, network: nn.Module, images: torch.Tensor, batch: int = 8) -> Distance:
    """Compare two networks.

    Args:
        engine: what runs in the engine.
        network: the simulated network.
        images: ``(n, 3, height, width)``.
        batch: images at a time.
    """
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    changed = images * (1 + _CHANGE * noise)
    given, expected, moved = (
        torch.cat([model(part) for part in torch.split(batches, batch)])
        for model, batches in ((engine, images), (network, images), (network, changed))
    )
    same, kept = (float((logits.argmax(-1) == expected.argmax(-1)).float().mean()) for logits in (given, moved))
    return Distance(len(images), float((given - expected).abs().max()), same, kept)
