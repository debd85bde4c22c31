"""How a range is chosen: the percentile pair with the smallest mean squared error."""

from dataclasses import dataclass

import torch

ACTIVATION_PERCENTILES = (0.999, 0.9999, 0.99999)
"""Candidates for activations (method page, section 4)."""
TOKEN_PERCENTILES = (0.98, 0.99, 0.995, 0.998, *ACTIVATION_PERCENTILES)
"""Candidates for activations whose error is counted per token: the best range may leave out a whole token."""
WEIGHT_PERCENTILES = (0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999)
"""Candidates for weights (method page, section 4)."""

_TAIL_SHARE = 1 / 8
"""Tails up to this share of a group are selected instead of sorted for; the values are the same."""
_BLOCK = 2**19
"""Values that are worked on at once: intermediate results of a whole activation would be the peak of memory."""


@dataclass(frozen=True)
class RangeSearch:
    """Candidates and constraints of a range search.

    Args:
        percentiles: candidates ``p``; the range runs from the ``1 - p`` to the ``p`` quantile.
        include_zero: widen each range so that it holds zero, which keeps the zero point within ``[0, n_codes - 1]``.
        per_token: count each squared error in units of the variance of its token, see :func:`token_weights`.
    """

    percentiles: tuple[float, ...] = ACTIVATION_PERCENTILES
    include_zero: bool = True
    per_token: bool = False


def token_weights(samples: torch.Tensor) -> torch.Tensor:
    """Weight ``(…, 1)`` of the squared errors of each token of ``samples (…, channels)``: one over its variance.

    A thousandth of the mean variance is added, so that tokens that are nearly constant do not decide alone.
    """
    variance = samples.var(dim=-1, keepdim=True, correction=0)
    floor = (variance.mean() * 1e-3).clamp_min(torch.finfo(samples.dtype).tiny)
    return (variance.mean() + floor) / (variance + floor)


def percentile_search(
    groups: torch.Tensor, n_codes: int, search: RangeSearch, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of each group, by mean squared error over the candidates.

    A group that is constant gets the range between zero and its value; a group of zeros gets zero point 0 and the mean
    scale of the other groups (1 where there is none), so that it does not distort the statistics of stage 2.

    Args:
        groups: samples ``(groups, elements)``, finite.
        n_codes: number of codes of the quantizer.
        search: candidates and constraints.
        weights: factors of the squared errors, ``(groups, n)`` where ``n`` divides ``elements``: each counts for
            ``elements / n`` neighbours. None counts all alike.

    Returns:
        Scale and zero point, each ``(groups,)``; the zero point is a whole number.
    """
    # Squared errors of half-precision values overflow half precision.
    groups = groups.float() if groups.dtype in (torch.float16, torch.bfloat16) else groups
    lows, highs = _quantile_pairs(groups, search.percentiles)
    magnitude = torch.maximum(groups.amax(), -groups.amin()).clamp_min(torch.finfo(groups.dtype).tiny)
    if search.include_zero:
        lows, highs = lows.clamp(max=0), highs.clamp(min=0)
    best_error = torch.full((groups.shape[0],), torch.inf, dtype=groups.dtype, device=groups.device)
    best_scale = torch.ones_like(best_error)
    best_zero = torch.zeros_like(best_error)
    for low, high in zip(lows, highs, strict=True):
        scale, zero = _affine(low, high, n_codes)
        error = _mean_error(groups, scale, zero, n_codes, magnitude, weights)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _affine(low: torch.Tensor, high: torch.Tensor, n_codes: int) -> tuple[torch.Tensor, torch.Tensor]:
    flat = high <= low
    low, high = torch.where(flat, low.clamp(max=0), low), torch.where(flat, high.clamp(min=0), high)
    scale = (high - low) / (n_codes - 1)
    usable = scale > torch.finfo(scale.dtype).tiny
    fallback = scale[usable].mean() if bool(usable.any()) else torch.ones_like(scale)
    scale = torch.where(usable, scale, fallback)
    return scale, torch.where(usable, torch.round(-low / scale), torch.zeros_like(scale))


def _mean_error(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    n_codes: int,
    magnitude: torch.Tensor,
    weights: torch.Tensor | None,
) -> torch.Tensor:
    """Mean over each group of its squared errors times their weights, ``(groups,)``."""
    count, elements = groups.shape
    neighbours = 1 if weights is None else elements // weights.shape[1]
    width = max(1, _BLOCK // (count * neighbours)) * neighbours
    total = torch.zeros_like(scale)
    for start in range(0, elements, width):
        errors = _squared_errors(groups[:, start : start + width], scale, zero, n_codes, magnitude)
        if weights is not None:
            part = weights[:, start // neighbours : (start + width) // neighbours]
            errors = errors.view(count, -1, neighbours).mul_(part.unsqueeze(-1)).flatten(1)
        total += errors.sum(dim=1)
    return total / elements


def _squared_errors(
    groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, n_codes: int, magnitude: torch.Tensor
) -> torch.Tensor:
    """Squared errors, shape of ``groups``, of each group under its own grid, in units of ``magnitude`` squared."""
    column, low = scale.unsqueeze(1), -zero.unsqueeze(1)
    steps = torch.div(groups, column).round_()
    if groups.shape[0] == 1:
        steps.clamp_(float(low), float(low) + n_codes - 1)
    else:
        steps = torch.minimum(torch.maximum(steps, low), low + (n_codes - 1))
    return steps.mul_(column).sub_(groups).div_(magnitude).square_()


def _quantile_pairs(groups: torch.Tensor, percentiles: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantiles ``1 - p`` and ``p`` of each group, linearly interpolated, each ``(percentiles, groups)``."""
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
