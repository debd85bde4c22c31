"""What a grid does to the output of the layer that reads the tensor."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from isvit_lightning.quantizers import Granularity, Grid, PerChannel, PerTensor, Site, Spec

_TENSORS = ("samples", "partner", "quantized", "gradients")
"""Of a site."""


class LayerError:
    """Mean squared error of a layer's output, for each group of values that share a grid.

    The layer computes its product once with both operands as they are, and for each grid with the other operand as it
    is quantized so far. Channels that the product sums over have no output of their own; alone, each of them changes
    the output in proportion to its own error, so that this is measured. So it is where no layer is known.

    Args:
        spec: format, width and granularity.
        site: the tensor and its layer.
        images: most rows of the batch that are looked at, evenly spaced; None takes all.
        by_gradients: multiply each squared error by the squared gradient of the loss.
        counted: share of the largest errors that count.
    """

    def __init__(
        self, spec: Spec, site: Site, images: int | None = None, by_gradients: bool = False, counted: float = 1.0
    ) -> None:
        self._spec, self._counted = spec, counted
        self._site = _in_float(site if images is None else _fewer(site, images))
        self._output_groups = _output_groups(spec.granularity, self._site)
        samples = self._site.samples
        self._target = samples if self._output_groups is None else self._site.output(samples)
        self._magnitude = self._target.abs().amax().clamp_min(torch.finfo(samples.dtype).tiny)
        self._weights: torch.Tensor | None = None
        if by_gradients and self._output_groups is not None:
            gradients = self._site.require_gradients()
            largest = gradients.abs().amax().clamp_min(torch.finfo(gradients.dtype).tiny)
            self._weights = (gradients / largest).square_()

    @property
    def samples(self) -> torch.Tensor:
        """The tensor as far as it is looked at."""
        return self._site.samples

    def __call__(self, grid: Grid) -> torch.Tensor:
        """Error of each group, ``(groups,)``, in units of the largest output.

        Args:
            grid: numbers ``(groups, 1)``.
        """
        spec = self._spec
        grid, n_codes = spec.format.searched(grid, spec.n_codes)
        shaped = tuple(number.reshape(spec.granularity.shape) for number in grid)
        values = spec.format.reconstruct(self._site.samples, shaped, n_codes)
        if self._output_groups is not None:
            values = self._site.output(values, quantized=True)
        errors = values.sub_(self._target).div_(self._magnitude).square_()
        if self._weights is not None:
            errors.mul_(self._weights)
        groups = (self._output_groups or spec.granularity).group(errors)
        if self._counted < 1:
            groups = groups.topk(max(1, round(self._counted * groups.shape[1])), dim=1, sorted=False).values
        return groups.mean(dim=1)


def _output_groups(granularity: Granularity, site: Site) -> Granularity | None:
    """Which elements of the output hang on one grid; None where no elements hang on one alone."""
    if not site.has_output:
        return None
    if isinstance(granularity, PerTensor):
        return granularity
    if site.operand == "weight":
        # Output channels lie last behind a linear layer and before height and width behind a convolution.
        return PerChannel(granularity.size, granularity.axis + 1)
    summed = -2 if site.operand == "right" else -1 if site.operand == "left" or site.channels_last else -3
    return None if granularity.axis == summed else granularity


def _fewer(site: Site, images: int) -> Site:
    """The same with a part of the batch."""
    of_batch = {"weight": ("partner", "quantized", "gradients"), "input": ("samples", "gradients")}
    fields = of_batch.get(site.operand, _TENSORS)
    return _changed(site, fields, lambda tensor: tensor[:: -(-len(tensor) // images)])


def _in_float(site: Site) -> Site:
    """The same with single precision in the place of half: squares of half-precision values overflow it."""
    half = (torch.float16, torch.bfloat16)
    return _changed(site, _TENSORS, lambda tensor: tensor.float() if tensor.dtype in half else tensor)


def _changed(site: Site, fields: tuple[str, ...], change: Callable[[torch.Tensor], torch.Tensor]) -> Site:
    """``site`` with those of ``fields`` changed that are known."""
    changed: dict[str, Any] = {name: change(tensor) for name in fields if (tensor := getattr(site, name)) is not None}
    return replace(site, **changed)
