"""Exact rewrites of a network."""

from isvit_lightning.transforms.fold import fold, is_foldable

__all__ = ["fold", "is_foldable"]
