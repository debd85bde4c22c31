"""Tensor → codes → tensor, and how a range is chosen: one file per number format."""

from isvit_lightning.quantizers.base import Quantizer
from isvit_lightning.quantizers.granularity import Granularity, PerChannel, PerTensor, per_head
from isvit_lightning.quantizers.log import LogQuantizer
from isvit_lightning.quantizers.role import Role
from isvit_lightning.quantizers.search import RangeSearch
from isvit_lightning.quantizers.sulq import SulqQuantizer
from isvit_lightning.quantizers.uniform import UniformQuantizer

__all__ = [
    "Granularity",
    "LogQuantizer",
    "PerChannel",
    "PerTensor",
    "Quantizer",
    "RangeSearch",
    "Role",
    "SulqQuantizer",
    "UniformQuantizer",
    "per_head",
]
