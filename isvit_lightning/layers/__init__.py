"""Where a quantizer sits: layers and attention with quantizers in front of their operands."""

from isvit_lightning.layers.attention import QuantAttention, QuantWindowAttention
from isvit_lightning.layers.conv import QuantConv2d
from isvit_lightning.layers.linear import QuantLinear
from isvit_lightning.layers.matmul import QuantMatMul
from isvit_lightning.layers.norm import QuantLayerNorm, give_affine

__all__ = [
    "QuantAttention",
    "QuantConv2d",
    "QuantLayerNorm",
    "QuantLinear",
    "QuantMatMul",
    "QuantWindowAttention",
    "give_affine",
]
