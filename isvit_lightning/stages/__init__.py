"""One LightningModule per SOS stage, one base that walks the units."""

from isvit_lightning.stages.activation import ActivationStage
from isvit_lightning.stages.base import Schedule, UnitStage
from isvit_lightning.stages.pipeline import Calibration, calibrate_network, quantize_without_tuning
from isvit_lightning.stages.reparameterization import ReparameterizationStage
from isvit_lightning.stages.weight import WeightStage

__all__ = [
    "ActivationStage",
    "Calibration",
    "ReparameterizationStage",
    "Schedule",
    "UnitStage",
    "WeightStage",
    "calibrate_network",
    "quantize_without_tuning",
]
