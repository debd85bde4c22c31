"""Number formats, one file each."""

from isvit_lightning.quantizers.formats.adalog import AdaLog
from isvit_lightning.quantizers.formats.anchored_uniform import AnchoredUniform
from isvit_lightning.quantizers.formats.base import Format, Grid
from isvit_lightning.quantizers.formats.log import Log
from isvit_lightning.quantizers.formats.power_of_two_factors import PowerOfTwoFactors
from isvit_lightning.quantizers.formats.shifted_log import ShiftedLog
from isvit_lightning.quantizers.formats.sulq import Sulq
from isvit_lightning.quantizers.formats.tangent import Tangent
from isvit_lightning.quantizers.formats.twin_uniform import TwinUniform
from isvit_lightning.quantizers.formats.uniform import Uniform

__all__ = [
    "AdaLog",
    "AnchoredUniform",
    "Format",
    "Grid",
    "Log",
    "PowerOfTwoFactors",
    "ShiftedLog",
    "Sulq",
    "Tangent",
    "TwinUniform",
    "Uniform",
]
