"""Elements that stay unquantized for one step (QDrop, arXiv 2203.05740)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

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
        self._drawn: dict[Quantizer, list[torch.Tensor]] = {}

    def draw(self, count: int, generator: torch.Generator) -> None:
        """Draw for a batch of ``count`` images."""
        self._drawn = {
            quantizer: [draw_ones((count, shape.numel()), generator, self._probability) for shape in shapes]
            for quantizer, shapes in self._shapes.items()
        }

    @contextmanager
    def kept(self, part: torch.Tensor) -> Iterator[None]:
        """Let elements through while some images pass the unit.

        Args:
            part: places of the images in the batch.
        """
        handles = [
            quantizer.register_forward_pre_hook(self._handing_out(quantizer, drawn, part))
            for quantizer, drawn in self._drawn.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for quantizer in self._drawn:
                quantizer.kept = None

    def _handing_out(
        self, quantizer: Quantizer, drawn: list[torch.Tensor], part: torch.Tensor
    ) -> Callable[[nn.Module, object], None]:
        """A hook that gives ``quantizer`` the elements of each of its calls in turn."""
        calls = iter(zip(drawn, self._shapes[quantizer], strict=True))

        def hand_out(_module: nn.Module, _arguments: object) -> None:
            elements, (first, *rest) = next(calls)
            device = quantizer.grid[0].device
            quantizer.kept = elements[part].reshape(len(part) * first, *rest).to(device)

        return hand_out


@torch.no_grad()
def _shapes(unit: Unit, inputs: Rows, device: torch.device) -> dict[Quantizer, list[torch.Size]]:
    """Shapes of what each activation quantizer that is switched on sees of one image, in each of its calls."""
    watched = [one for one in quantizers(unit.module).values() if one.enabled and not one.role.weight]
    shapes: dict[Quantizer, list[torch.Size]] = {one: [] for one in watched}

    def note(quantizer: Quantizer, arguments: tuple[torch.Tensor]) -> None:
        shapes[quantizer].append(arguments[0].shape)

    handles = [one.register_forward_pre_hook(note) for one in watched]
    try:
        unit(moved(inputs[:1], device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes
