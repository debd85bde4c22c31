"""The loss that looks at the features of the whole network, and at the unit itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import SINGLE
from isvit_lightning.stages.losses.loss import Loss, Surroundings, UnitLoss
from isvit_lightning.stages.losses.relative import RelativeLoss
from isvit_lightning.stages.passes import run_in_chunks
from isvit_lightning.storage.caches import Caches


@dataclass(frozen=True)
class FeatureError(Loss):
    """Squared error of what the classifier reads, plus that of the unit's own outputs (GLF-Q, Nanjing, 2026).

    The outputs of the unit pass the float network behind it, up to the input of its last unit. Each of the two errors
    is relative to its mean over images before the unit is tuned. The last unit has its own error alone. Every step
    passes all units behind the one that is tuned, so that steps in early units take several times as long.

    Args:
        local: weight of the error of the unit's own outputs, beside 1 for that of the features.
        images: calibration images that the first errors are taken of.

    Raises:
        IsvitError: a number is out of its range.
    """

    local: float = 2.0
    images: int = 128

    def __post_init__(self) -> None:
        if not (0 <= self.local < math.inf and self.images >= 1):
            raise IsvitError(
                f"FeatureError has {self}, expected a weight local of 0 or more and 1 or more images: change loss "
                "under model.recipe.steps."
            )

    @override
    def prepare(self, around: Surroundings) -> UnitLoss:
        suffix = around.required_suffix(type(self).__name__)
        if not suffix.units:
            return RelativeLoss(around, self.images, 1.0, lambda outputs, wanted, _places: [_mean(outputs - wanted)])
        caches = Caches(chunk=around.chunk)
        features = run_in_chunks(
            lambda data: {SINGLE: suffix.features(data[SINGLE])}, around.targets, around.device, caches
        )

        def terms(outputs: torch.Tensor, wanted: torch.Tensor, places: torch.Tensor) -> Sequence[torch.Tensor]:
            wanted_features = features[places][SINGLE].to(outputs)
            return [_mean(suffix.features(outputs) - wanted_features), _mean(outputs - wanted)]

        return RelativeLoss(around, self.images, [1.0, self.local], terms)


def _mean(errors: torch.Tensor) -> torch.Tensor:
    """Mean square ``(batch,)`` of all that belongs to an image."""
    return errors.square().flatten(1).mean(dim=1)
