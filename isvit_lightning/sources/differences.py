"""In which tensors a file and a network differ, and which option mends it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_BY_SHAPE: Final = {"pos_embed": "img_size", r".*\.relative_position_bias_table": "window_size"}
"""The argument of timm that decides over the shape of such tensors."""
_BY_NAME: Final = {
    r"(fc_)?norm\.(weight|bias)": "global_pool",
    r".*\.ls[12]\.gamma": "init_values",
    r"reg_token": "reg_tokens",
}
"""The argument of timm that decides whether there are such tensors."""


@dataclass(frozen=True)
class Difference:
    """A tensor in which a file and a network differ.

    Args:
        name: its name.
        own: its shape in the network; None where it has none.
        given: its shape in the file; None where it has none.
    """

    name: str
    own: torch.Size | None
    given: torch.Size | None

    def __str__(self) -> str:
        """The difference in words."""
        if self.given is None:
            return f"{self.name} is missing"
        if self.own is None:
            return f"{self.name} is unexpected"
        if self.own == self.given:
            return f"{self.name} is no dense tensor of floating-point numbers"
        return f"{self.name} has shape {tuple(self.given)} instead of {tuple(self.own)}"


def differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[Difference]:
    """What is missing, what is unexpected, what has another shape and what is of another kind, in this order.

    Args:
        own: tensors of the network by name.
        given: tensors of the file by name.
    """
    both = [name for name in own if name in given]
    shared = [Difference(name, own[name].shape, given[name].shape) for name in both]
    return [
        *(Difference(name, value.shape, None) for name, value in own.items() if name not in given),
        *(Difference(name, None, value.shape) for name, value in given.items() if name not in own),
        *(one for one in shared if one.own != one.given),
        *(one for one in shared if one.own == one.given and not _can_be_copied(given[one.name], own[one.name])),
    ]


def advice(found: Sequence[Difference]) -> str:
    """Which options mend the differences between a classifier and its file.

    Args:
        found: all of them.
    """
    if all(one.given is None and one.name.startswith("head.") for one in found):
        return "change model.network.checkpoint to a file that holds the head too"
    arguments = sorted({_argument(one) for one in found})
    if "" in arguments:
        return "change model.network.checkpoint, model.network.name or model.network.args"
    return (
        f"set {' and '.join(arguments)} in model.network.args, or model_args in model.network.description, or change "
        "model.network.checkpoint"
    )


def _argument(one: Difference) -> str:
    """The argument of timm that explains a difference, with its value where the file tells it; empty where none is."""
    if one.own is None or one.given is None:
        return _matching(_BY_NAME, one.name)
    if one.own == one.given:
        return ""
    if re.fullmatch(r"head\.(fc\.)?(weight|bias)", one.name) and one.own[1:] == one.given[1:]:
        return f"num_classes {one.given[0]}"
    if one.name == "patch_embed.proj.weight" and one.own[0] == one.given[0] and len(one.given) == len(one.own):
        return f"patch_size {one.given[2]}" if one.own[1] == one.given[1] else f"in_chans {one.given[1]}"
    return _matching(_BY_SHAPE, one.name)


def _matching(arguments: Mapping[str, str], name: str) -> str:
    return next((argument for pattern, argument in arguments.items() if re.fullmatch(pattern, name)), "")


def _can_be_copied(given: Tensor, own: Tensor) -> bool:
    """Whether nothing is lost but digits: dense, in memory, and with a fraction where the network's has one."""
    dense = given.layout is torch.strided and given.device.type == "cpu" and not given.is_quantized
    return dense and not given.is_complex() and given.is_floating_point() >= own.is_floating_point()
