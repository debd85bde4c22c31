"""The best of some grids, by the error that they make on samples."""

from collections.abc import Callable, Iterable, Sequence

import torch

from isvit_lightning.quantizers.formats import Format, Grid

_BLOCK = 2**19
"""Values that are worked on at once: intermediate results of a whole activation would be the peak of memory."""


def best_of(
    grids: Iterable[Grid], error: Callable[[Grid], torch.Tensor], fallback: Sequence[float] | None = None
) -> Grid:
    """For each group, the first of the grids with the smallest error; ``fallback`` where each is infinite or NaN.

    Args:
        grids: at least one; numbers ``(groups, 1)``.
        error: of a grid on each group, ``(groups,)``.
        fallback: numbers of a grid that can be computed with; None takes the first of the grids.
    """
    best: Grid = ()
    least = torch.empty(0)
    for grid in grids:
        found = error(grid).unsqueeze(1).nan_to_num(nan=torch.inf, posinf=torch.inf)
        if not best:
            best, least = grid, found
            continue
        better = found < least
        least = torch.where(better, found, least)
        best = tuple(torch.where(better, new, old) for new, old in zip(grid, best, strict=True))
    if fallback is None:
        return best
    return tuple(
        torch.where(least.isinf(), torch.full_like(number, value), number)
        for number, value in zip(best, fallback, strict=True)
    )


def squared_error(
    form: Format, grid: Grid, n_codes: int, groups: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over each group of its squared errors times their weights, ``(groups,)``.

    Errors are taken in units of the largest magnitude of all groups, so that their squares neither vanish nor overflow.

    Args:
        form: the format.
        grid: its numbers, ``(groups, 1)``.
        n_codes: number of codes.
        groups: samples ``(groups, elements)``.
        weights: ``(groups, n)`` where ``n`` divides ``elements``: each counts for ``elements / n`` neighbours. None
            counts all alike.
    """
    magnitude = torch.maximum(groups.amax(), -groups.amin()).clamp_min(torch.finfo(groups.dtype).tiny)
    count, elements = groups.shape
    neighbours = 1 if weights is None else elements // weights.shape[1]
    width = max(1, _BLOCK // (count * neighbours)) * neighbours
    total = groups.new_zeros(count)
    for start in range(0, elements, width):
        part = groups[:, start : start + width]
        errors = form.reconstruct(part, grid, n_codes).sub_(part).div_(magnitude).square_()
        if weights is not None:
            counted = weights[:, start // neighbours : (start + width) // neighbours]
            errors = errors.view(count, -1, neighbours).mul_(counted.unsqueeze(-1)).flatten(1)
        total += errors.sum(dim=1)
    return total / elements
