"""A number format as a staircase: its values in order, and the smallest number that gets each of them."""

import torch

from isvit_lightning.quantizers import Quantizer


def thresholds_of(quantizer: Quantizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Thresholds and values of a quantizer, found by asking it.

    Codes that share a value are one, where the quantizer has one grid. Bisection over the floats themselves ends at the
    very numbers where the code changes, so that comparing with them gives the codes that the quantizer gives.

    Args:
        quantizer: calibrated, with codes that rise or fall with the value.

    Returns:
        ``(n_values - 1, *shape of the grid)`` and ``(n_values, *shape of the grid)``, both ascending, in float32.
    """
    table = quantizer.table().float()
    falling = bool((table[0] > table[-1]).any())
    values = table.flip(0) if falling else table
    n_codes = len(values)
    ranks = torch.arange(1, n_codes, device=values.device).view(-1, *(1 for _ in values.shape[1:]))
    wanted = ranks.expand(n_codes - 1, *values.shape[1:])
    low = torch.full(wanted.shape, 0 if quantizer.format.non_negative else _ordered(-_LARGEST), device=values.device)
    high = torch.full_like(low, _ordered(_LARGEST))
    # The answer lies in (low, high]; the range of the floats halves 33 times at most.
    for _ in range(33):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        codes = quantizer.encode(_floats(middle))
        reached = (n_codes - 1 - codes if falling else codes) >= wanted
        high = torch.where(reached, middle, high)
        low = torch.where(reached, low, middle)
    thresholds = _floats(high)
    if values.dim() == 1:
        changes = values.diff() != 0
        return thresholds[changes], values[torch.cat([changes.new_ones(1), changes])]
    return thresholds, values


_LARGEST = torch.finfo(torch.float32).max


def _ordered(number: float) -> int:
    """Place of a float32 among all of them, 0 for zero."""
    bits = int(torch.tensor(number, dtype=torch.float32).view(torch.int32))
    return bits if bits >= 0 else -(bits & 0x7FFF_FFFF)


def _floats(places: torch.Tensor) -> torch.Tensor:
    """Float32 at each place (int64) among all of them."""
    bits = places.abs().to(torch.int32).view(torch.float32)
    return torch.where(places < 0, -bits, bits)
