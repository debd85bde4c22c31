"""What a quantized tensor is, independent of the name of the module that holds it."""

from enum import Enum


class Role(str, Enum):
    """The part a tensor plays in a vision transformer. Roles decide which quantizer goes where."""

    QKV_IN = "qkv_in"
    QUERY = "query"
    KEY = "key"
    ATTN_PROB = "attn_prob"
    VALUE = "value"
    PROJ_IN = "proj_in"
    FC1_IN = "fc1_in"
    GELU_OUT = "gelu_out"
    REDUCTION_IN = "reduction_in"
    HEAD_IN = "head_in"
    NECK_IN = "neck_in"
    RPN_IN = "rpn_in"
    BOX_HEAD_IN = "box_head_in"
    MASK_HEAD_IN = "mask_head_in"
    WEIGHT = "weight"
    OTHER = "other"
