"""How far a unit's output lies from the float unit's."""

from isvit_lightning.stages.losses.divergence import divergence
from isvit_lightning.stages.losses.loss import Loss, Suffix, Surroundings, UnitLoss
from isvit_lightning.stages.losses.squared import NormalizedError, SquaredError, reconstruction_loss

__all__ = [
    "Loss",
    "NormalizedError",
    "SquaredError",
    "Suffix",
    "Surroundings",
    "UnitLoss",
    "divergence",
    "reconstruction_loss",
]
