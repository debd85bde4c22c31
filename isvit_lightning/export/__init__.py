"""How the result leaves the building: packed codes and safe files, integers, graphs of other engines."""

from isvit_lightning.export.runtime import IntegerNetwork, integer

__all__ = ["IntegerNetwork", "integer"]
