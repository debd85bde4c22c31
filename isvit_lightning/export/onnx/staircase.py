"""A staircase as a table over equal bins: an engine multiplies, cuts off the fraction and looks up.

A bin that holds a threshold gives all of its numbers one value: those on the wrong side of the threshold are *flipped*.
As there are few thresholds, a scale is chosen that puts the edges of bins close to them.
"""

import math
from dataclasses import dataclass

import torch

from isvit_lightning.export.operands import Steps

MOST_BINS = 1 << 16
"""Larger tables leave the caches of a core."""
_SCALES = 2048
"""Numbers of bins that are tried."""
_MEASURED = 4
"""How many of them are measured, after an estimate."""
_MARGIN = 4
"""Bins behind the last threshold, for numbers a rounding error above the highest."""


@dataclass(frozen=True)
class Binned:
    """A staircase over equal bins.

    Args:
        scale: bins per unit; the bin of ``x`` is ``x · scale`` without its fraction, calculated in float32.
        steps: index of the value of each bin, ``(n_bins,)``, int64.
        of_root: whether the bins are those of the square root of ``x``, which spreads small numbers.
        flipped: share of the samples whose value is another one than the staircase gives.
    """

    scale: float
    steps: torch.Tensor
    of_root: bool
    flipped: float


def bin_steps(steps: Steps, samples: torch.Tensor | None, highest: float, *, of_root: bool) -> Binned:
    """The table with the fewest flips.

    Args:
        steps: one staircase for all of the tensor, thresholds above zero.
        samples: numbers that it will see, any shape; None takes numbers that are spread evenly over the octaves.
        highest: largest number that it will see.
        of_root: whether the bins are those of the square root.
    """
    samples = _evenly(steps, highest) if samples is None else samples.flatten()
    ordered, thresholds = samples.float().sort().values, steps.thresholds.float()
    true = torch.bucketize(ordered, thresholds, right=True)
    if of_root:
        ordered, thresholds, highest = ordered.sqrt(), thresholds.sqrt(), highest**0.5
    scales = torch.linspace(MOST_BINS / 2, MOST_BINS - _MARGIN, _SCALES) / highest
    lower = (thresholds * scales.unsqueeze(1)).floor() / scales.unsqueeze(1)
    edges = (lower, thresholds.expand_as(lower), lower + 1 / scales.unsqueeze(1))
    below, at, above = (torch.searchsorted(ordered, edge.contiguous()) for edge in edges)
    flips = torch.minimum(at - below, above - at).sum(dim=1)
    best = (float(scales[index]) for index in flips.argsort()[:_MEASURED].tolist())
    tables = [_binned(scale, thresholds, ordered, true, highest) for scale in best]
    scale, table, flipped = min(tables, key=lambda entry: entry[2])
    return Binned(scale, table, of_root, flipped)


def _binned(
    scale: float, thresholds: torch.Tensor, ordered: torch.Tensor, true: torch.Tensor, highest: float
) -> tuple[float, torch.Tensor, float]:
    """Scale, table and share of flips."""
    n_bins = int(highest * scale) + _MARGIN
    places = (ordered * scale).to(torch.int32).long().clamp_(max=n_bins - 1)
    # Where no sample falls: the value in the middle of the bin.
    middles = (torch.arange(n_bins, dtype=torch.float64) + 0.5) / scale
    table = torch.bucketize(middles, thresholds.double(), right=True)
    for index in (thresholds.double() * scale).long().clamp_(max=n_bins - 1).tolist():
        inside = true[places == index]
        if inside.numel():
            table[index] = inside.mode().values
    return scale, table, float((table[places] != true).float().mean())


def _evenly(steps: Steps, highest: float) -> torch.Tensor:
    lowest = float(steps.thresholds.min()) / 4
    return torch.linspace(math.log2(lowest), math.log2(highest), 1 << 16).exp2()


@dataclass(frozen=True)
class Split:
    """A staircase over bins that are equal in the square root of the number, each with one threshold at most.

    Args:
        scale: bins per unit of the square root.
        thresholds: of each bin, ``(n_bins,)``; infinity where there is none.
        steps: index of the value below and above the threshold of each bin, ``(2 · n_bins,)``, int64.
    """

    scale: float
    thresholds: torch.Tensor
    steps: torch.Tensor


def split_steps(steps: Steps, highest: float) -> Split | None:
    """The smallest table; None where two thresholds are too close for any.

    Args:
        steps: one staircase for all of the tensor, thresholds above zero.
        highest: largest number that it will see.
    """
    for bits in range(8, 17):
        scale = torch.tensor((2**bits - _MARGIN) / highest**0.5)
        places = _places(steps.thresholds, scale)
        # The engine's square root may differ in its last bit, so that the bin of a threshold may be the one beside.
        if bool((places.diff() > 2).all()):
            return _split(float(scale), steps.thresholds, places, 2**bits)
    return None


def _places(numbers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (numbers.sqrt() * scale).long()


def _split(scale: float, thresholds: torch.Tensor, places: torch.Tensor, n_bins: int) -> Split:
    of_bin = torch.full((n_bins,), torch.inf)
    # Also in the bins beside it, for numbers that a rounding error puts there.
    below = torch.bucketize(torch.arange(n_bins), places, right=False)
    for shift in (-1, 1, 0):
        inside = (places + shift).clamp(0, n_bins - 1)
        of_bin[inside] = thresholds
        if shift == 1:
            below[inside] = torch.arange(len(places))
    sides = torch.stack([below, below + of_bin.isfinite().long()], dim=1)
    return Split(scale, of_bin, sides.flatten())
