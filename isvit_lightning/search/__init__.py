"""How the grid of a quantizer is chosen, one file per search."""

from isvit_lightning.search.beam import Beam
from isvit_lightning.search.output_error import OutputError
from isvit_lightning.search.percentiles import Percentiles

__all__ = ["Beam", "OutputError", "Percentiles"]
