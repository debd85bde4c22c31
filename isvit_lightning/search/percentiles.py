"""The range between two quantiles whose grid makes the smallest squared error."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import Grid, PerTensor, Search, Site, Spec
from isvit_lightning.search.best import best_of, squared_error

ACTIVATION_PERCENTILES = (0.999, 0.9999, 0.99999)
"""Candidates for activations (method page, section 4)."""

_TAIL_SHARE = 1 / 8
"""Tails up to this share of a group are selected instead of sorted for; the values are the same."""
_BLOCK = 2**19
"""Values that a selection looks at once."""


@dataclass(frozen=True)
class Percentiles(Search):
    """Compares the grids of several ranges, each from the ``1 - p`` to the ``p`` quantile of the samples.

    What is null is as usual for the format, see :attr:`Format.usual_search`, or else as said here.

    Args:
        percentiles: candidates ``p``; 1 takes the smallest and the largest sample. Else 0.999, 0.9999 and 0.99999.
        include_zero: widen each range so that it holds zero, which keeps the zero point within ``[0, n_codes - 1]``.
            Else true.
        per_token: count each squared error in units of the variance of its token, see :func:`token_weights`; not for
            inputs of convolutions, which have no tokens.
        interpolate: take quantiles between two samples linearly; false takes the outer one. Else true.
        free: values to try for the number that a range leaves open, such as the shift of SULQ. Else the format's list.
        samples: most samples of a group that errors are measured on. Else all.

    Raises:
        IsvitError: no candidate, or one outside 0.5 to 1.
    """

    percentiles: tuple[float, ...] | None = None
    include_zero: bool | None = None
    per_token: bool = False
    interpolate: bool | None = None
    free: tuple[float, ...] | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        given = (1.0,) if self.percentiles is None else self.percentiles
        if not given or not all(0.5 < percentile <= 1 for percentile in given) or self.free == ():
            raise IsvitError(
                f"A range search has percentiles {list(given)} and {self.free} for what they leave open, "
                "expected at least one each, above 0.5 and up to 1: change search under model.recipe.placement."
            )

    @override
    def choose(self, spec: Spec, site: Site) -> Grid:
        """See :meth:`Search.choose`; the grid of each group is chosen by its own error."""
        # Squared errors of half-precision values overflow half precision.
        half = site.samples.dtype in (torch.float16, torch.bfloat16)
        samples = site.samples.float() if half else site.samples
        groups = spec.granularity.group(samples)
        kept = self._usual("samples", spec, None)
        weights = _group_weights(samples, spec) if self.per_token and site.channels_last else None
        seen = groups if kept is None else groups[:, :: max(1, groups.shape[1] // kept)].contiguous()
        best = best_of(self._grids(groups, spec), lambda grid: _error(spec, grid, seen, weights), spec.format.fallback)
        return tuple(number.reshape(spec.granularity.shape) for number in best)

    def _grids(self, groups: torch.Tensor, spec: Spec) -> Iterator[Grid]:
        percentiles = self._usual("percentiles", spec, ACTIVATION_PERCENTILES)
        lows, highs = quantile_pairs(groups, percentiles, self._usual("interpolate", spec, True))
        if self._usual("include_zero", spec, True):
            lows, highs = lows.clamp(max=0), highs.clamp(min=0)
        for low, high in zip(lows, highs, strict=True):
            yield from spec.format.grids(
                low.unsqueeze(1), high.unsqueeze(1), spec.n_codes, self.free or spec.format.free
            )

    def _usual(self, name: str, spec: Spec, otherwise: Any) -> Any:
        """A choice of this search, or else the usual one."""
        given = getattr(self, name)
        return spec.format.usual_search.get(name, otherwise) if given is None else given


def _error(spec: Spec, grid: Grid, groups: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return squared_error(spec.format, *spec.format.searched(grid, spec.n_codes), groups, weights)


def token_weights(samples: torch.Tensor) -> torch.Tensor:
    """Weight ``(…, 1)`` of the squared errors of each token of ``samples (…, channels)``: one over its variance.

    A thousandth of the mean variance is added, so that tokens that are nearly constant do not decide alone.
    """
    variance = samples.var(dim=-1, keepdim=True, correction=0)
    floor = (variance.mean() * 1e-3).clamp_min(torch.finfo(samples.dtype).tiny)
    return (variance.mean() + floor) / (variance + floor)


def _group_weights(samples: torch.Tensor, spec: Spec) -> torch.Tensor:
    weights = token_weights(samples)
    # One grid for all: a weight for each token will do, as its channels lie side by side.
    return spec.granularity.group(weights if isinstance(spec.granularity, PerTensor) else weights.expand_as(samples))


def quantile_pairs(
    groups: torch.Tensor, percentiles: tuple[float, ...], interpolate: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantiles ``1 - p`` and ``p`` of each group, each ``(percentiles, groups)``.

    Args:
        groups: samples ``(groups, elements)``, finite.
        percentiles: candidates ``p``.
        interpolate: between two samples linearly; false takes the outer one.
    """
    count = groups.shape[1]
    tail = min(count, int((1 - min(percentiles)) * (count - 1)) + 2)
    if tail <= count * _TAIL_SHARE:
        # Sorting a row for its outermost hundredths is waste; the tails give the same quantiles, 2.5 times faster.
        top = _outermost(groups, tail, largest=True)
        bottom = _outermost(groups, tail, largest=False)
    else:
        ordered = groups.sort(dim=1).values
        bottom, top = ordered[:, :tail], ordered[:, count - tail :].flip(1)
    positions = torch.tensor([(1 - p) * (count - 1) for p in percentiles], dtype=torch.float64, device=groups.device)
    if not interpolate:
        positions = positions.floor()
    return _interpolate(bottom, positions), _interpolate(top, positions)


def _outermost(groups: torch.Tensor, tail: int, largest: bool) -> torch.Tensor:
    """The ``tail`` largest or smallest values of each group in order, ``(groups, tail)``."""
    # A selection keeps an index of eight bytes beside each value that it looks at.
    width = max(tail, _BLOCK // groups.shape[0])
    found = groups[:, :0]
    for part in torch.split(groups, width, dim=1):
        joined = torch.cat([found, part], dim=1)
        found = joined.topk(min(tail, joined.shape[1]), dim=1, largest=largest).values
    return found


def _interpolate(ordered: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Values of ``ordered (groups, tail)`` at fractional ``positions (n,)``, as ``(n, groups)``."""
    below = positions.floor().long().clamp(max=ordered.shape[1] - 1)
    above = (below + 1).clamp(max=ordered.shape[1] - 1)
    weight = (positions - below).to(ordered.dtype)
    return torch.lerp(ordered[:, below], ordered[:, above], weight).T
