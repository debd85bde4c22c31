"""The steps of a recipe, and the LightningModules that they train."""

from isvit_lightning.stages.finetune import Finetune, FinetuneStage
from isvit_lightning.stages.fold import Fold, FoldStage
from isvit_lightning.stages.in_turn import RoundInTurn
from isvit_lightning.stages.inputs import Inputs
from isvit_lightning.stages.losses import (
    CurvatureError,
    DiagonalPlusLowRank,
    Estimator,
    FeatureError,
    FiniteDifference,
    LeastSquares,
    Loss,
    NormalizedError,
    SquaredError,
    SquaredGradient,
    Surroundings,
    UnitLoss,
)
from isvit_lightning.stages.ranges import Ranges
from isvit_lightning.stages.rounding import AdaRound
from isvit_lightning.stages.schedule import Schedule
from isvit_lightning.stages.stage import Stage
from isvit_lightning.stages.step import Fit, Step, Work
from isvit_lightning.stages.trainables import NoWeights, StraightThrough, Trainables
from isvit_lightning.stages.tuning import Tune, TuningStage
from isvit_lightning.stages.walk import UnitStage

__all__ = [
    "AdaRound",
    "CurvatureError",
    "DiagonalPlusLowRank",
    "Estimator",
    "FeatureError",
    "Finetune",
    "FinetuneStage",
    "FiniteDifference",
    "Fit",
    "Fold",
    "FoldStage",
    "Inputs",
    "LeastSquares",
    "Loss",
    "NoWeights",
    "NormalizedError",
    "Ranges",
    "RoundInTurn",
    "Schedule",
    "SquaredError",
    "SquaredGradient",
    "Stage",
    "Step",
    "StraightThrough",
    "Surroundings",
    "Trainables",
    "Tune",
    "TuningStage",
    "UnitLoss",
    "UnitStage",
    "Work",
]
