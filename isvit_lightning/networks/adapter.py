"""How an architecture is opened: one small adapter each, found by the type of the network."""

from functools import singledispatch
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks.factory import LayerFactory
from isvit_lightning.networks.known import told
from isvit_lightning.networks.opened import Heads, Stream, Unit, Wire

SUPPORTED = "timm's VisionTransformer (ViT, DeiT, DINOv2) and SwinTransformer (v1)"


class Adapter(Protocol):
    """What the steps need to know of an architecture. ``docs/architectures.md`` writes one step by step."""

    def insert(self, factory: LayerFactory) -> None:
        """Replace the layers of the network in place by quantized ones."""

    def units(self) -> tuple[Unit, ...]:
        """The units in order of execution, of the float or the quantized network."""

    def wires(self) -> tuple[Wire, ...]:
        """The norms whose output only linear layers read, of the float or the quantized network."""


@runtime_checkable
class HasHeads(Protocol):
    """An adapter that tells the attention heads of its network, so that they can be rotated."""

    def heads(self) -> tuple[Heads, ...]:
        """Each attention."""


@runtime_checkable
class HasStream(Protocol):
    """An adapter that tells who writes and reads the residual stream of its network, so that it can be rotated."""

    def stream(self) -> Stream:
        """The residual stream."""


@runtime_checkable
class HasMoreThanUnits(Protocol):
    """An adapter of a network of which only a part is units."""

    def run(self, images: torch.Tensor) -> object:
        """One pass of ``images (batch, 3, height, width)`` through every layer.

        Tensors in what it gives are compared with the float network's, so none may hang on a threshold.
        """


@singledispatch
def adapter_for(model: nn.Module) -> Adapter:
    """Adapter of ``model``; register another architecture with ``adapter_for.register(TheType)``.

    Raises:
        IsvitError: no adapter is registered for the type.
    """
    raise IsvitError(
        f"Cannot open {type(model).__module__}.{type(model).__qualname__}; supported are {SUPPORTED}. Choose one with "
        "model.network.name or register an adapter (docs/architectures.md)."
    )


def expect_type(module: nn.Module, name: str, *expected: type[nn.Module]) -> None:
    """Refuse a part of a network that an adapter does not know.

    Raises:
        IsvitError: ``module`` at path ``name`` is not of exactly or a subclass of the expected type.
    """
    if not isinstance(module, expected):
        raise IsvitError(
            f"Cannot open {name}: it is a {told(type(module), expected)}, supported is {expected[0].__qualname__}. "
            "Choose another model.network.name or register an adapter (docs/architectures.md)."
        )
