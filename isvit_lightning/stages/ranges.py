"""The step that only chooses ranges."""

from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import calibrate_activations, calibrate_weights, switch
from isvit_lightning.stages.step import Fit, Step, Work


@dataclass(frozen=True)
class Ranges(Step):
    """Chooses the grids of all activations with float weights, or of all weights.

    Args:
        name: what rows, logs and parts of a run call the step.
        of: activations, or weights, which are quantized from then on.
    """

    name: str = "ranges"
    of: Literal["activations", "weights"] = "activations"

    def __post_init__(self) -> None:
        if self.of not in ("activations", "weights"):
            raise IsvitError(
                f"The step {self.name} chooses ranges of {self.of!r}, expected activations or weights: change "
                "model.recipe.steps."
            )

    @property
    @override
    def quantizes_weights(self) -> bool:
        return self.of == "weights"

    @property
    @override
    def chooses_ranges(self) -> bool:
        return self.of == "activations"

    @property
    @override
    def needs_ranges(self) -> bool:
        return self.of == "weights"

    @override
    def take(self, work: Work, fit: Fit) -> None:
        network = work.quantized
        switch(network.model, weights=self.quantizes_weights, activations=True)
        if self.quantizes_weights:
            calibrate_weights(network.model)
            return
        sample = work.images[: work.range_images].to(next(network.model.parameters()).device)
        calibrate_activations(network.model, lambda: network.walk(sample))
