"""Integer products in PyTorch."""

from isvit_lightning.export.runtime.network import IntegerNetwork, integer, integer_model

__all__ = ["IntegerNetwork", "integer", "integer_model"]
