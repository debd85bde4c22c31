"""Equal steps down from the largest value: our reading of APQ-ViT's quantizer (arXiv 2303.14341)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from isvit_lightning.quantizers.formats.base import Format, Grid


@dataclass(frozen=True)
class AnchoredUniform(Format):
    """``x̂ = t - s · code``: the largest value ``t`` is exact, and what lies below the last code gets its value.

    Our reading of the quantizer that preserves the Matthew effect: few probabilities hold most of the attention. A
    uniform grid has to hold zero; this one may begin above it, by the share of the range that is its free number, and
    has finer steps for that.
    """

    numbers: ClassVar[tuple[str, ...]] = ("scale", "top")
    fallback: ClassVar[tuple[float, ...]] = (1.0, 0.0)
    free: ClassVar[tuple[float, ...]] = (0.0, *(2.0**-k for k in range(12, 0, -1)))

    @override
    def grids(self, low: torch.Tensor, high: torch.Tensor, n_codes: int, free: tuple[float, ...]) -> Iterator[Grid]:
        for share in free:
            scale = (high - low) * (1 - share) / (n_codes - 1)
            # A constant is exact with any step.
            yield torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale)), high

    @override
    def codes(self, tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
        scale, top = grid
        return torch.sub(top, tensor).div_(scale).round_()

    @override
    def base(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        scale, top = grid
        return codes.mul_(scale).neg_().add_(top)

    @override
    def slope(self, tensor: torch.Tensor, base: torch.Tensor, grid: Grid) -> torch.Tensor:
        return torch.ones_like(tensor)
