"""Tensor → codes → tensor: formats, granularity, roles, and the quantizer that holds a grid."""

from isvit_lightning.quantizers.formats import (
    AdaLog,
    AnchoredUniform,
    Format,
    Grid,
    Log,
    PowerOfTwoFactors,
    ShiftedLog,
    Sulq,
    Tangent,
    TwinUniform,
    Uniform,
)
from isvit_lightning.quantizers.granularity import Granularity, PerChannel, PerTensor, per_head
from isvit_lightning.quantizers.quantizer import Quantizer
from isvit_lightning.quantizers.role import Role
from isvit_lightning.quantizers.site import Layer, Operand, Search, Site
from isvit_lightning.quantizers.spec import Spec

__all__ = [
    "AdaLog",
    "AnchoredUniform",
    "Format",
    "Granularity",
    "Grid",
    "Layer",
    "Log",
    "Operand",
    "PerChannel",
    "PerTensor",
    "PowerOfTwoFactors",
    "Quantizer",
    "Role",
    "Search",
    "ShiftedLog",
    "Site",
    "Spec",
    "Sulq",
    "Tangent",
    "TwinUniform",
    "Uniform",
    "per_head",
]
