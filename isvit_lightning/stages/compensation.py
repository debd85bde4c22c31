"""Rounding of a weight in which later columns make up for the errors of earlier ones (GPTQ, arXiv 2210.17323)."""

from collections.abc import Callable

import torch

_BLOCK = 64
"""Columns that are rounded before the columns behind them are corrected, all at once."""


def round_columns(
    weight: torch.Tensor, moment: torch.Tensor, nearest: Callable[[torch.Tensor], torch.Tensor], damping: float = 0.01
) -> torch.Tensor:
    """A rounding ``Q`` of ``W`` with a small ``tr (W - Q) H (W - Q)ᵀ``, the squared error of the layer's output.

    Columns are rounded one after another, those with the largest moments first; the error of each is spread over the
    columns that are still to be rounded, as is best while those may take any value.

    Args:
        weight: ``W (rows, columns)``.
        moment: ``H (columns, columns)``, sum or mean of ``x xᵀ`` over the inputs ``x`` of the layer.
        nearest: rounds one column ``(rows, 1)`` to the grid of each row.
        damping: what is added to the diagonal of ``H``, as a share of its mean.

    Returns:
        ``Q (rows, columns)`` in float64.
    """
    moment = moment.double().clone()
    diagonal = moment.diagonal()
    # An input that is always zero says nothing of its column, which is rounded by itself.
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    order = diagonal.argsort(descending=True)
    factor = torch.linalg.cholesky(moment[order][:, order])
    # Row i holds, from its diagonal on, how an error of column i is spread over the columns behind it.
    spread = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    left = weight.double()[:, order]
    rounded = torch.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        stop = min(start + _BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, start:stop])
        for column in range(start, stop):
            value = left[:, column : column + 1]
            rounded[:, column : column + 1] = nearest(value)
            error = (value - rounded[:, column : column + 1]) / spread[column, column]
            errors[:, column - start : column - start + 1] = error
            left[:, column:stop] -= error * spread[column, column:stop]
        left[:, stop:] -= errors @ spread[start:stop, stop:]
    return rounded[:, order.argsort()]
