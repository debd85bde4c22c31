"""Exact rewrites of a network."""

from isvit_lightning.transforms.fold import fold, is_foldable, move
from isvit_lightning.transforms.rotate import RotateHeads, RotateStream
from isvit_lightning.transforms.transform import Transform

__all__ = ["RotateHeads", "RotateStream", "Transform", "fold", "is_foldable", "move"]
