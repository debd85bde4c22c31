"""Elements that stay unquantized for one step (QDrop, arXiv 2203.05740)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from isvit_lightning.networks import Unit, quantizers
from isvit_lightning.quantizers import Quantizer
from isvit_lightning.stages.inputs import draw_ones
from isvit_lightning.stages.passes import Rows, moved


class Dropper:
    """Draws, for each step, the elements that the activation quantizers of a unit let through as they are.

    Elements are drawn for all images of a batch at once, so that neither micro-batches nor processes change them.

    Args:
        unit: the quantized unit.
        inputs: what it reads; one image shows which shapes its quantizers see.
        probability: share of the elements; 0 draws nothing.
    """

    def __init__(self, unit: Unit, inputs: Rows, probability: float, device: torch.device) -> None:
        self._probability = probability
        self._shapes = _shapes(unit, inputs, device) if probability else {}
        self._drawn: dict[Quantizer, torch.Tensor] = {}

    def draw(self, count: int, generator: torch.Generator) -> None:
        """Draw for a batch of ``count`` images."""
        self._drawn = {
            quantizer: draw_ones((count, shape.numel()), generator, self._probability)
            for quantizer, shape in self._shapes.items()
        }

    @contextmanager
    def kept(self, part: torch.Tensor) -> Iterator[None]:
        """Let elements through while some images pass the unit.

        Args:
            part: places of the images in the batch.
        """
        for quantizer, drawn in self._drawn.items():
            first, *rest = self._shapes[quantizer]
            device = quantizer.grid[0].device
            quantizer.kept = drawn[part].reshape(len(part) * first, *rest).to(device)
        try:
            yield
        finally:
            for quantizer in self._drawn:
                quantizer.kept = None


@torch.no_grad()
def _shapes(unit: Unit, inputs: Rows, device: torch.device) -> dict[Quantizer, torch.Size]:
    """Shape of what each activation quantizer that is switched on sees of one image."""
    shapes: dict[Quantizer, torch.Size] = {}
    watched = [one for one in quantizers(unit.module).values() if one.enabled and not one.role.weight]
    handles = [
        one.register_forward_pre_hook(lambda module, args: shapes.update({module: args[0].shape})) for one in watched
    ]
    try:
        unit(moved(inputs[:1], device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes
