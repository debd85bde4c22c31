"""What a quantized tensor is, independent of the name of the module that holds it."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Role:
    """The part that a tensor plays in a network. Roles decide which quantizer goes where.

    The roles below are those of every vision transformer; an adapter may add others for layers of its own.

    Args:
        name: in configurations and files.
        weight: whether the tensor is a weight; all others are activations.
    """

    IMAGE: ClassVar["Role"]
    NORM_IN: ClassVar["Role"]
    QKV_IN: ClassVar["Role"]
    QUERY: ClassVar["Role"]
    KEY: ClassVar["Role"]
    ATTN_PROB: ClassVar["Role"]
    VALUE: ClassVar["Role"]
    PROJ_IN: ClassVar["Role"]
    FC1_IN: ClassVar["Role"]
    GELU_OUT: ClassVar["Role"]
    REDUCTION_IN: ClassVar["Role"]
    HEAD_IN: ClassVar["Role"]
    WEIGHT: ClassVar["Role"]
    OTHER: ClassVar["Role"]

    name: str
    weight: bool = False

    def __str__(self) -> str:
        return self.name


Role.IMAGE = Role("image")
Role.NORM_IN = Role("norm_in")
Role.QKV_IN = Role("qkv_in")
Role.QUERY = Role("query")
Role.KEY = Role("key")
Role.ATTN_PROB = Role("attn_prob")
Role.VALUE = Role("value")
Role.PROJ_IN = Role("proj_in")
Role.FC1_IN = Role("fc1_in")
Role.GELU_OUT = Role("gelu_out")
Role.REDUCTION_IN = Role("reduction_in")
Role.HEAD_IN = Role("head_in")
Role.WEIGHT = Role("weight", weight=True)
Role.OTHER = Role("other")
