"""How far networks are from the float one on images that they were calibrated on, and on ones that were held out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from isvit_lightning.callbacks import let_go
from isvit_lightning.data.selection import calibration_order
from isvit_lightning.errors import IsvitError
from isvit_lightning.system.processes import world_size

COLUMNS = (
    ("held_out_agreement", "held-out agreement %"),
    ("held_out_kl", "held-out KL"),
    ("seen_kl", "seen KL"),
    ("unseen_over_seen", "unseen/seen"),
)
"""What :meth:`Distances.row` gives, each with its title in a table."""

Distance = Callable[[nn.Module], dict[str, float]]
"""Agreement in per cent and KL in nats of a network to the float one, on images that it knows."""


def require_hold_out(count: int, images: int, comparable: bool) -> None:
    """Refuse a hold-out that leaves a process without an image, or that nothing can be measured on.

    Args:
        count: images that are held out; 0 for none.
        images: calibration images.
        comparable: whether networks of the kind are compared with the float one.

    Raises:
        IsvitError: it cannot be.
    """
    if count and not comparable:
        raise IsvitError(
            "Networks of this kind are not compared with the float one, expected a classifier where a recipe is chosen "
            "on calibration images: leave --choose_on out."
        )
    least = world_size()
    if count and not least <= count <= images - least:
        raise IsvitError(
            f"--choose_on is {count}, expected at least {least} of the {images} calibration images, and as many left "
            "to calibrate on: change --choose_on or raise data.calibration_images."
        )


def hold_out(images: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images to calibrate on, in their order, and images that are held out.

    Args:
        images: calibration images ``(n, channels, height, width)``; the first result takes their place in memory, so
            that no image is held twice.
        count: images that are held out, below ``n``.
        seed: of the draw. Images may come in the order of their classes: the last ones would be of a few.

    Returns:
        ``(n - count, …)`` and ``(count, …)``.
    """
    drawn = sorted(calibration_order(len(images), "random", seed)[:count])
    held = images[drawn]
    left = sorted(set(range(len(images))) - set(drawn))
    for place, index in enumerate(left):  # never a later place than that of the image
        images[place] = images[index]
    return images[: len(left)], held


@dataclass(frozen=True)
class Distances:
    """Measures networks on calibration images, without labels.

    Args:
        seen: on the images that they are calibrated on; None where networks of the kind are compared with nothing.
        held_out: on the images that are held out; None where none are.
    """

    seen: Distance | None = None
    held_out: Distance | None = None

    def row(self, network: nn.Module, metrics: Mapping[str, float]) -> dict[str, float]:
        """What a row tells of ``network``: :data:`COLUMNS`, those that can be measured.

        Args:
            network: quantized.
            metrics: on the evaluation images, whose KL counts as that of unseen images where none are held out.
        """
        if self.seen is None:
            return {}
        found: dict[str, float] = {}
        unseen = metrics.get("kl")
        if self.held_out is not None:
            held = self.held_out(network)
            found = {"held_out_agreement": held["agreement"], "held_out_kl": held["kl"]}
            unseen = held["kl"]
        seen = self.seen(network)["kl"]
        found["seen_kl"] = seen
        if unseen is not None and seen > 0:
            found["unseen_over_seen"] = round(unseen / seen, 4)
        let_go()
        return found
