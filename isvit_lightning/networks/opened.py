"""A network opened for block-wise work: its units in order and its (norm, linear) pairs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from isvit_lightning.layers import QuantLinear


@dataclass(frozen=True)
class Unit:
    """A part of the network that is tuned as a whole.

    Args:
        name: path of the module in the network.
        module: the part itself; it maps one tensor to one tensor.
        enter: maps the previous unit's output (the image, for the first unit) to this unit's input. It holds what lies
            between two units: position embedding, final norm, pooling.
        source: maps the float network and images ``(batch, 3, height, width)`` to this unit's input, where it does not
            read the output of the unit before it, as neck and heads of a detector. None for the units of a backbone.
        mixed: whether channels of its output are different quantities, such as scores and shifts of boxes.
    """

    name: str
    module: nn.Module
    enter: Callable[[torch.Tensor], torch.Tensor]
    source: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None
    mixed: bool = False


@dataclass(frozen=True)
class NormLinearPair:
    """A LayerNorm whose output only one linear layer reads, so that a per-channel affine map can move between them.

    Args:
        name: path of the linear layer in the network.
        unit: name of the unit that holds the pair.
        norm: the LayerNorm.
        linear: the quantized linear layer that reads its output.
        padded: module whose buffer ``pad_value (channels,)`` stands for an original zero in padding behind the norm;
            None where nothing pads there.
    """

    name: str
    unit: str
    norm: nn.LayerNorm
    linear: QuantLinear
    padded: nn.Module | None = None

    @property
    def pad_value(self) -> torch.Tensor | None:
        """The buffer of ``padded``, looked up on each use: moving a network to another device replaces its buffers."""
        return None if self.padded is None else self.padded.get_buffer("pad_value")


@dataclass(frozen=True)
class OpenedNetwork:
    """A float or quantized network with its units.

    Args:
        model: the whole network, ``(batch, 3, height, width)`` to ``(batch, classes)``.
        units: its units in order of execution.
        pairs: its reparameterizable pairs; empty for a float network.
        run: one pass of images through all of the network; None where the units are all of it.
    """

    model: nn.Module
    units: tuple[Unit, ...]
    pairs: tuple[NormLinearPair, ...] = ()
    run: Callable[[torch.Tensor], object] | None = None

    def walk(self, images: torch.Tensor) -> object:
        """One pass through every quantizer.

        Logits ``(batch, classes)`` by way of the units, equal to ``model(images)``, where the units are all of it.
        """
        if self.run is not None:
            return self.run(images)
        value = images
        for unit in self.units:
            value = unit.module(unit.enter(value))
        return value
