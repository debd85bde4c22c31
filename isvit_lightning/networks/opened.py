"""A network opened for block-wise work: its units in order, and who writes and reads what between them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Data = dict[str, torch.Tensor]
"""Tensors by name, each with one row for each image: what a unit reads or gives."""
SINGLE = "x"
"""Name of the tensor of a unit that reads and gives one."""


@dataclass(frozen=True)
class Unit:
    """A part of the network that is tuned as a whole.

    Args:
        name: path of the module in the network.
        module: the part itself; it maps one tensor to one tensor, or :data:`Data` to :data:`Data` where ``named``.
        enter: maps the previous unit's output (the image, for the first unit) to this unit's input, one tensor each. It
            holds what lies between two units: position embedding, final norm, pooling.
        source: maps the float network and images ``(batch, 3, height, width)`` to what this unit reads, where that is
            not the output of the unit before it. None for the units of a chain.
        mixed: whether channels of its output are different quantities, such as scores and shifts of boxes.
        named: whether the module reads and gives several tensors by name.
    """

    name: str
    module: nn.Module
    enter: Callable[[torch.Tensor], torch.Tensor]
    source: Callable[[nn.Module, torch.Tensor], Data] | None = None
    mixed: bool = False
    named: bool = False

    def __call__(self, data: Data) -> Data:
        """What the unit gives for what it reads."""
        if self.named:
            given: Data = self.module(data)
            return given
        return {SINGLE: self.module(data[SINGLE])}

    def entered(self, previous: Data) -> Data:
        """What the unit reads after the output of the unit before it."""
        return {SINGLE: self.enter(previous[SINGLE])}


@dataclass(frozen=True)
class Wire:
    """A LayerNorm whose output only linear layers read, so that an affine map by channel can move between them.

    Args:
        name: path of the first reader in the network.
        unit: name of the unit that holds the wire.
        norm: the LayerNorm.
        readers: the linear layers that read its output, float or quantized.
        padded: module whose buffer ``pad_value (channels,)`` stands for an original zero in padding behind the norm;
            None where nothing pads there.
    """

    name: str
    unit: str
    norm: nn.LayerNorm
    readers: tuple[nn.Module, ...]
    padded: nn.Module | None = None

    @property
    def pad_value(self) -> torch.Tensor | None:
        """The buffer of ``padded``, looked up on each use: moving a network to another device replaces its buffers."""
        return None if self.padded is None else self.padded.get_buffer("pad_value")


@dataclass(frozen=True)
class Heads:
    """An attention whose queries and keys, and whose values and projection, can be rotated head by head.

    Args:
        name: path of the attention in the network.
        qkv: linear layer whose rows are queries, keys and values, each head by head.
        proj: linear layer whose columns are the heads' outputs.
        count: number of heads.
        rotates_scores: whether nothing but a scale lies between ``qkv`` and the product of queries and keys.
        rotates_values: whether nothing lies between the product with the values and ``proj``.
    """

    name: str
    qkv: nn.Module
    proj: nn.Module
    count: int
    rotates_scores: bool = True
    rotates_values: bool = True


@dataclass(frozen=True)
class Writer:
    """A layer that adds to the residual stream.

    Args:
        layer: linear layer, or convolution, whose output channels are those of the stream.
        scale: factor of each output channel behind the layer, ``(channels,)``; None where there is none.
    """

    layer: nn.Module
    scale: nn.Parameter | None = None


@dataclass(frozen=True)
class Stream:
    """The residual stream of a network.

    Args:
        channels: its width.
        writers: the layers that add to it.
        offsets: parameters ``(…, channels)`` that are added to it, such as positions and class token.
        wires: the norms that read it, each with the linear layers that read the norm alone.
    """

    channels: int
    writers: tuple[Writer, ...]
    offsets: tuple[nn.Parameter, ...]
    wires: tuple[Wire, ...]


@dataclass(frozen=True)
class OpenedNetwork:
    """A float or quantized network with its units.

    Args:
        model: the whole network, ``(batch, 3, height, width)`` to ``(batch, classes)``.
        units: its units in order of execution.
        wires: its norms whose output only linear layers read.
        run: one pass of images through all of the network; None where the units are all of it.
    """

    model: nn.Module
    units: tuple[Unit, ...]
    wires: tuple[Wire, ...] = ()
    run: Callable[[torch.Tensor], object] | None = None

    def walk(self, images: torch.Tensor) -> object:
        """One pass through every quantizer.

        Logits ``(batch, classes)`` by way of the units, equal to ``model(images)``, where the units are all of it.
        """
        if self.run is not None:
            return self.run(images)
        data = {SINGLE: images}
        for unit in self.units:
            data = unit(unit.entered(data))
        return data[SINGLE]
