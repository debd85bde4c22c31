"""Number formats, one file each."""

from isvit_lightning.quantizers.formats.adalog import AdaLog
from isvit_lightning.quantizers.formats.base import Format, Grid
from isvit_lightning.quantizers.formats.log import Log
from isvit_lightning.quantizers.formats.shifted_log import ShiftedLog
from isvit_lightning.quantizers.formats.sulq import Sulq
from isvit_lightning.quantizers.formats.uniform import Uniform

__all__ = ["AdaLog", "Format", "Grid", "Log", "ShiftedLog", "Sulq", "Uniform"]
