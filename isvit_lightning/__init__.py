"""Post-training quantization of vision transformers with I&S-ViT."""

from isvit_lightning.api import calibrate
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork, load
from isvit_lightning.recipe.method import Bits, Method, Tuning

__all__ = ["Bits", "IsvitError", "Method", "QuantizedNetwork", "Tuning", "calibrate", "load"]
