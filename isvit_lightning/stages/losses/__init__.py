"""How far a unit's output lies from the float unit's."""

from isvit_lightning.stages.losses.curvature import CurvatureError
from isvit_lightning.stages.losses.divergence import divergence
from isvit_lightning.stages.losses.estimator import Estimator
from isvit_lightning.stages.losses.estimators import (
    DiagonalPlusLowRank,
    FiniteDifference,
    LeastSquares,
    SquaredGradient,
)
from isvit_lightning.stages.losses.features import FeatureError
from isvit_lightning.stages.losses.loss import Loss, Suffix, Surroundings, UnitLoss
from isvit_lightning.stages.losses.squared import NormalizedError, SquaredError, reconstruction_loss

__all__ = [
    "CurvatureError",
    "DiagonalPlusLowRank",
    "Estimator",
    "FeatureError",
    "FiniteDifference",
    "LeastSquares",
    "Loss",
    "NormalizedError",
    "SquaredError",
    "SquaredGradient",
    "Suffix",
    "Surroundings",
    "UnitLoss",
    "divergence",
    "reconstruction_loss",
]
