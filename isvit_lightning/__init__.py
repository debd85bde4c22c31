"""Post-training quantization of vision transformers."""

from isvit_lightning.api import calibrate
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork, load
from isvit_lightning.recipe import Bits, Recipe, read_recipe
from isvit_lightning.stages import Schedule

__all__ = ["Bits", "IsvitError", "QuantizedNetwork", "Recipe", "Schedule", "calibrate", "load", "read_recipe"]
