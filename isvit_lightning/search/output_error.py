"""The share of a range whose grid makes the smallest error in the output of the layer (PTQ4ViT, arXiv 2111.12293)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import Grid, Search, Site, Spec
from isvit_lightning.search.best import best_of
from isvit_lightning.search.layer_error import LayerError


@dataclass(frozen=True)
class OutputError(Search):
    """Compares the grids of several shares of the range between the smallest and the largest sample.

    Each is measured by the squared error of the output of the layer that reads the tensor. Where no layer is known, as
    in front of a norm, and for a grid by a channel that a product sums over, the error is that of the tensor.

    Args:
        shares: the smallest and the largest share.
        candidates: number of shares, evenly spaced; 1 takes the largest alone.
        free: values to try for the number that a range leaves open. Null takes those of the format.
        by_gradients: multiply each squared error by the squared gradient of the log-likelihood of the prediction (the
            Hessian-guided metric of PTQ4ViT); for classifiers, with a step Ranges.
        counted: share of the largest errors that count, the others are dropped (bottom elimination of APQ-ViT, arXiv
            2303.14341).
        images: most images, or windows of Swin, that errors are measured on, evenly spaced. Null takes all.

    Raises:
        IsvitError: a number is out of its range.
    """

    shares: tuple[float, float] = (0.01, 1.2)
    candidates: int = 100
    free: tuple[float, ...] | None = None
    by_gradients: bool = False
    counted: float = 1.0
    images: int | None = None

    def __post_init__(self) -> None:
        first, last = self.shares
        if not (0 < first <= last and 0 < self.counted <= 1 and self.candidates > 0) or self.free == ():
            raise IsvitError(
                f"A search by the error of the output has {self}, expected positive shares in ascending order, one "
                "candidate or more and counted above 0 and up to 1: change search under model.recipe.placement."
            )
        require_images(self.images)

    @property
    @override
    def sees_output(self) -> bool:
        return True

    @property
    @override
    def sees_gradients(self) -> bool:
        return self.by_gradients

    @override
    def choose(self, spec: Spec, site: Site) -> Grid:
        """See :meth:`Search.choose`; the grid of each group is chosen by its own error where it has one."""
        error = LayerError(spec, site, self.images, self.by_gradients, self.counted)
        low, high = ends(spec, site)
        best = best_of(self._grids(spec, low, high), error, spec.format.fallback)
        return tuple(number.reshape(spec.granularity.shape) for number in best)

    def _grids(self, spec: Spec, low: torch.Tensor, high: torch.Tensor) -> Iterator[Grid]:
        first, last = self.shares
        for share in torch.linspace(last, first, self.candidates, dtype=torch.float64).tolist():
            yield from spec.format.grids(low * share, high * share, spec.n_codes, self.free or spec.format.free)


def ends(spec: Spec, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest sample of each group, ``(groups, 1)``; zero lies between them."""
    half = site.samples.dtype in (torch.float16, torch.bfloat16)
    groups = spec.granularity.group(site.samples.float() if half else site.samples)
    return groups.amin(dim=1, keepdim=True).clamp(max=0), groups.amax(dim=1, keepdim=True).clamp(min=0)


def require_images(images: int | None) -> None:
    """Refuse fewer images than one.

    Raises:
        IsvitError: there are fewer.
    """
    if images is not None and images < 1:
        raise IsvitError(
            f"A search by the error of the output looks at {images} images, expected 1 or more: change images of the "
            "search under model.recipe.placement."
        )
