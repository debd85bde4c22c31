"""Means over calibration images, with the same bits whatever the number of processes that share them."""

from collections.abc import Callable, Sequence

import torch

from isvit_lightning.stages.halving import MicroBatch
from isvit_lightning.stages.losses.loss import Surroundings
from isvit_lightning.system.processes import sum_over_processes

Terms = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""Tensors ``(batch, …)`` of the images at some rows of this process."""


def groups_of(around: Surroundings, places: torch.Tensor) -> list[torch.Tensor]:
    """Places of rows of this process in the groups that pass a network apart from each other.

    One process forms the two groups that two processes would carry: which images pass at once decides the last bits.
    """
    groups = [places] if around.processes > 1 else [places[0::2], places[1::2]]
    return [group for group in groups if len(group)]


def image_means(around: Surroundings, images: int, terms: Terms) -> list[torch.Tensor]:
    """Means ``(…)`` over the first images of all processes.

    Sums are float64.

    Args:
        around: the unit and its targets.
        images: how many images, at least one for each process; all of them, where there are fewer.
        terms: what is averaged, in the type of the means; nothing of it is kept.
    """
    places = torch.arange(len(around.targets))
    places = places[around.numbers(places) < max(images, around.processes)]
    groups = groups_of(around, places)

    def gather(size: int) -> tuple[list[torch.Tensor], list[torch.dtype]]:
        total: list[torch.Tensor] = []
        kinds: list[torch.dtype] = []
        for group in groups:
            own: list[torch.Tensor] = []
            for rows in torch.split(group, size):
                found = terms(rows)
                kinds = [each.dtype for each in found]
                count = torch.tensor(float(len(rows)), dtype=torch.float64)
                sums = [*(each.sum(dim=0).cpu().double() for each in found), count]
                own = [a + b for a, b in zip(own, sums, strict=True)] if own else sums
            total = [a + b for a, b in zip(total, own, strict=True)] if total and own else total or own
        return total, kinds

    sums, kinds = MicroBatch(around.chunk).retry(gather, around.unit.name, around.device)
    if around.processes > 1:
        sums = [_summed(each, around.device) for each in sums]
    *sums, count = sums
    return [(each / count).to(around.device, kind) for each, kind in zip(sums, kinds, strict=True)]


def _summed(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    sent = tensor.to(device)
    sum_over_processes(sent)
    return sent.cpu()
