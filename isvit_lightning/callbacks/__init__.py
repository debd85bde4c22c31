"""What happens around a stage: calibrate, watch, keep, progress."""

from isvit_lightning.callbacks.calibrate import CalibrateQuantizers
from isvit_lightning.callbacks.checkpoint import SaveUnits
from isvit_lightning.callbacks.losses import LogLosses
from isvit_lightning.callbacks.memory import ReturnMemory, let_go
from isvit_lightning.callbacks.progress import UnitProgress, UnitReport
from isvit_lightning.callbacks.watch import GridUse, WatchQuantizers, measure_unit

__all__ = [
    "CalibrateQuantizers",
    "GridUse",
    "LogLosses",
    "ReturnMemory",
    "SaveUnits",
    "UnitProgress",
    "UnitReport",
    "WatchQuantizers",
    "let_go",
    "measure_unit",
]
