"""Both ends of a range, or one and what it leaves open, by a beam of candidates (FPCS of AdaLog, arXiv 2407.12951)."""

from dataclasses import dataclass
from itertools import product

import torch
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import Grid, Search, Site, Spec
from isvit_lightning.search.layer_error import LayerError
from isvit_lightning.search.output_error import ends, require_images


@dataclass(frozen=True)
class Beam(Search):
    """Fast progressive combining search: a coarse grid of candidates, of which the best are refined step by step.

    A candidate is a share of the smallest sample, one of the largest, and the number that these leave open: for a
    uniform format scale and zero point, for an adaptive logarithm scale and base. What makes no difference is not
    varied. Each is measured by the squared error of the output of the layer, as in a search ``OutputError``.

    Args:
        points: values of each coordinate on the coarse grid.
        smallest: the smallest share of an end of the range.
        width: candidates that are kept after each step.
        steps: how often the neighbours of those are tried, each time at half of the distance.
        images: most images, or windows of Swin, that errors are measured on, evenly spaced. Null takes all.

    Raises:
        IsvitError: a number is out of its range.
    """

    points: int = 10
    smallest: float = 0.1
    width: int = 16
    steps: int = 4
    images: int | None = None

    def __post_init__(self) -> None:
        if self.points < 2 or self.width < 1 or self.steps < 0 or not 0 < self.smallest < 1:
            raise IsvitError(
                f"A beam search has {self}, expected two points or more, a width of 1 or more, no negative steps and "
                "smallest between 0 and 1: change search under model.recipe.placement."
            )
        require_images(self.images)

    @property
    @override
    def sees_output(self) -> bool:
        return True

    @override
    def choose(self, spec: Spec, site: Site) -> Grid:
        """See :meth:`Search.choose`; each group has a beam of its own."""
        space = _Space(spec, *ends(spec, site), self.smallest)
        error = LayerError(spec, site, self.images)

        def measured(places: torch.Tensor) -> torch.Tensor:
            found = torch.stack([error(space.grid(place)) for place in places])
            return found.nan_to_num(nan=torch.inf, posinf=torch.inf)

        places = space.coarse(self.points)
        errors = measured(places)
        distance = space.spacing(self.points)
        for _ in range(self.steps):
            errors, order = errors.topk(min(self.width, len(errors)), dim=0, largest=False)
            places = places.gather(0, order.unsqueeze(1).expand(-1, places.shape[1], -1))
            distance = distance / 2
            tried = space.neighbours(places, distance)
            places, errors = torch.cat([places, tried]), torch.cat([errors, measured(tried)])
        least, first = errors.min(dim=0)
        best = places.gather(0, first.expand(1, places.shape[1], -1))[0]
        return tuple(
            torch.where(least.isinf().unsqueeze(1), torch.full_like(number, value), number).reshape(
                spec.granularity.shape
            )
            for number, value in zip(space.grid(best), spec.format.fallback, strict=True)
        )


class _Space:
    """What candidates can be: shares of the ends of a range, and a place in the list of what it leaves open.

    Args:
        spec: the format.
        low: smallest sample of each group, ``(groups, 1)``.
        high: largest one.
        smallest: smallest share.
    """

    def __init__(self, spec: Spec, low: torch.Tensor, high: torch.Tensor, smallest: float) -> None:
        self._spec, self._low, self._high = spec, low, high
        last = len(spec.format.free) - 1.0
        limits = ((smallest, 1.0), (smallest, 1.0), (0.0, last))
        whole = self.grid(self._at(1.0, 1.0, 0.0))
        varied = [
            any(not torch.equal(a, b) for a, b in zip(whole, self.grid(self._at(*other)), strict=True))
            for other in ((0.5, 1.0, 0.0), (1.0, 0.5, 0.0), (1.0, 1.0, last))
        ]
        self._limits = [
            limit if varies else (limit[1], limit[1]) if place < 2 else (0.0, 0.0)
            for place, (limit, varies) in enumerate(zip(limits, varied, strict=True))
        ]

    def coarse(self, points: int) -> torch.Tensor:
        """All combinations of evenly spaced values, the whole range first; ``(n, 3, groups)``."""
        values = [
            torch.linspace(last, first, points).tolist() if last > first else [last] for first, last in self._limits
        ]
        return torch.stack([self._at(*place) for place in product(*values)])

    def spacing(self, points: int) -> torch.Tensor:
        """Distance of neighbouring values, ``(3,)``."""
        return self._low.new_tensor([(last - first) / (points - 1) for first, last in self._limits])

    def neighbours(self, places: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        """Places a distance away along every axis and diagonal, ``(n, 3, groups)`` again."""
        ways = [(-1.0, 0.0, 1.0) if last > first else (0.0,) for first, last in self._limits]
        moves = [move for move in product(*ways) if any(move)] or [(0.0, 0.0, 0.0)]
        first, last = (self._low.new_tensor(side).unsqueeze(1) for side in zip(*self._limits, strict=True))
        moved = [places + (distance * self._low.new_tensor(move)).unsqueeze(1) for move in moves]
        return torch.cat(moved).clamp(first, last)

    def grid(self, place: torch.Tensor) -> Grid:
        """Numbers ``(groups, 1)`` of the grid at ``place (3, groups)``."""
        lows, highs, open_ones = place.unsqueeze(2)
        free = self._spec.format.free
        indices = open_ones.round().long()
        chosen: Grid = ()
        for index in indices.unique().tolist():
            (found,) = self._spec.format.grids(self._low * lows, self._high * highs, self._spec.n_codes, (free[index],))
            pairs = zip(found, chosen or found, strict=True)
            chosen = tuple(torch.where(indices == index, new, old) for new, old in pairs)
        return chosen

    def _at(self, *place: float) -> torch.Tensor:
        """The same place for all groups, ``(3, groups)``."""
        return self._low.new_tensor(place).unsqueeze(1).expand(-1, len(self._low))
