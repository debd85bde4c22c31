"""How the grid of a quantizer is chosen, one file per search."""

from isvit_lightning.search.percentiles import Percentiles

__all__ = ["Percentiles"]
