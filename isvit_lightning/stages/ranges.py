"""The step that only chooses ranges."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import Gradients, calibrate_ranges, output_gradients, quantizers, switch
from isvit_lightning.stages.step import Fit, Step, Work


@dataclass(frozen=True)
class Ranges(Step):
    """Chooses the grids of all activations with float weights, of all weights, or of both.

    With both, the operands of each product take turns, the weight before the input and the left one before the right
    one, each in the presence of the other on its grid, where the search looks at outputs.

    Args:
        name: what rows, logs and parts of a run call the step.
        of: activations, weights, or all; weights are quantized from then on.
        rounds: how often the grids are chosen, each time in the presence of those of the round before.
    """

    name: str = "ranges"
    of: Literal["activations", "weights", "all"] = "activations"
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.of not in ("activations", "weights", "all"):
            raise IsvitError(
                f"The step {self.name} chooses ranges of {self.of!r}, expected activations, weights or all: change "
                "model.recipe.steps."
            )
        if self.rounds < 1:
            raise IsvitError(
                f"The step {self.name} has {self.rounds} rounds, expected 1 or more: change model.recipe.steps."
            )

    @property
    @override
    def quantizes_weights(self) -> bool:
        return self.of != "activations"

    @property
    @override
    def chooses_ranges(self) -> bool:
        return self.of != "weights"

    @property
    @override
    def needs_ranges(self) -> bool:
        return self.of == "weights"

    @override
    def take(self, work: Work, fit: Fit) -> None:
        network = work.quantized
        switch(network.model, weights=self.quantizes_weights, activations=True)
        sample = work.images[: work.range_images].to(next(network.model.parameters()).device)
        gradients = self._gradients(work, sample)
        for _ in range(self.rounds):
            calibrate_ranges(
                network.model, lambda: network.walk(sample), self.quantizes_weights, self.chooses_ranges, gradients
            )

    def _gradients(self, work: Work, sample: torch.Tensor) -> Gradients:
        """Those that searches want, by layer."""
        model: Any = work.quantized.model
        layers = {
            model.get_submodule(path.rpartition(".")[0])
            for path, one in quantizers(model).items()
            if (self.quantizes_weights if one.role.weight else self.chooses_ranges)
            and one.search is not None
            and one.search.sees_gradients
        }
        return output_gradients(work.quantized, sample, layers, work.seed) if layers else {}
