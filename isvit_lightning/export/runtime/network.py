"""A calibrated network with integer products in PyTorch."""

import logging
from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.lower import (
    Lowered,
    LoweredConv2d,
    LoweredLinear,
    LoweredMatMul,
    Weight,
    float_products,
    lower,
)
from isvit_lightning.export.operands import Encoding, encoding_of, is_wide
from isvit_lightning.export.runtime.encode import Snap
from isvit_lightning.export.runtime.layers import (
    FloatConv2d,
    FloatLinear,
    FloatMatMul,
    Int8Linear,
    IntegerMatMul,
    OneDnnConv2d,
    OneDnnLinear,
)
from isvit_lightning.export.runtime.products import has_onednn, has_wide_sums
from isvit_lightning.networks import copied, quantizers
from isvit_lightning.sources.architecture import Architecture
from isvit_lightning.sources.preprocessing import Preprocessing

_LOG = logging.getLogger(__name__)
_NARROW = 64
"""Weights up to this: twice the product with 255 is one of 16 bits."""


class IntegerNetwork(nn.Module):
    """A calibrated network that multiplies integers: the same codes, in int8.

    Made by :func:`integer`; ``torch.compile`` makes one pass of each encoding and what comes before it.

    Args:
        model: network with integer layers.
        float_products: why a product is one of floats all the same, by path of its layer.
        architecture: how its float form is built.
        preprocessing: how its images are prepared.
        record: what it was made with.
    """

    def __init__(
        self,
        model: nn.Module,
        float_products: Mapping[str, str],
        architecture: Architecture | None = None,
        preprocessing: Preprocessing | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.float_products = dict(float_products)
        self.architecture = architecture
        self.preprocessing = preprocessing
        self.record = dict(record or {})
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of ``images (batch, 3, height, width)``."""
        logits: torch.Tensor = self.model(images)
        return logits

    @property
    def resident_bytes(self) -> int:
        """Memory of its weights and all its other tensors."""
        return sum(map(_bytes, {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}.values()))


def integer(network: QuantizedNetwork, device: str | torch.device = "cpu") -> IntegerNetwork:
    """The integer form of a calibrated network, which gives the same codes but for ties of rounding.

    Example::

        network = isvit_lightning.export.integer(isvit_lightning.load("runs/quickstart"))
        fast = torch.compile(network)

    Args:
        network: calibrated; it is left untouched.
        device: where it is to compute: a CPU or a CUDA device. It cannot be moved later.

    Returns:
        A network for inference without gradients.

    Raises:
        IsvitError: the network is not calibrated, or has grids without integer codes.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise IsvitError(f"There is no {device} here, expected a device of this machine: change trainer.accelerator.")
    model, floats = _made(network.model, device)
    return IntegerNetwork(model, floats, network.architecture, network.preprocessing, network.record)


def integer_model(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of ``model``, or of a part of a network, whose quantized layers have integer products.

    Args:
        model: calibrated; it is left untouched.
        device: where it is to compute.
    """
    return _made(model, device)[0]


def _made(model: nn.Module, device: torch.device) -> tuple[nn.Module, dict[str, str]]:
    """The copy, and why each product is one of floats that is one, by path."""
    products = lower(model)
    on_cpu_by_onednn = device.type == "cpu" and has_onednn()
    made, floats = copied(model), float_products(products)
    for path, product in products.items():
        layer = layer_of(product, on_cpu_by_onednn)
        if isinstance(layer, FloatLinear | FloatMatMul):
            floats.setdefault(path, "this machine has no product of such integers")
        _replace(made, path, layer)
    for path, quantizer in quantizers(made).items():
        _replace(made, path, Snap(encoding_of(quantizer)) if quantizer.enabled else nn.Identity())
    _LOG.info("%d of %d products are those of integers", len(products) - len(floats), len(products))
    made.to(device).requires_grad_(False).eval()  # some networks give nothing back
    return made, floats


@singledispatch
def layer_of(product: Lowered, onednn: bool) -> nn.Module:
    """The layer that computes a product.

    Args:
        product: its integers.
        onednn: whether it computes by oneDNN.
    """
    raise NotImplementedError(type(product), onednn)


@layer_of.register
def _(product: LoweredLinear, onednn: bool) -> nn.Module:
    if product.reason is not None or product.encoding is None or product.weight is None:
        return FloatLinear(product)
    if _overflows(product.encoding, product.weight):
        return FloatLinear(product)
    kind = OneDnnLinear if onednn else Int8Linear
    return kind(product, product.encoding, product.weight)


@layer_of.register
def _(product: LoweredConv2d, onednn: bool) -> nn.Module:
    if product.reason is not None or product.encoding is None or product.weight is None:
        return FloatConv2d(product)
    if not onednn or bool((product.weight.zero_point != 0).any()) or _overflows(product.encoding, product.weight):
        return FloatConv2d(product)
    return OneDnnConv2d(product, product.encoding, product.weight)


@layer_of.register
def _(product: LoweredMatMul, onednn: bool) -> nn.Module:  # noqa: ARG001 - products of two activations need nothing packed
    if product.reason is not None or product.left is None or product.right is None or _overflows(product.left):
        return FloatMatMul(product)
    return IntegerMatMul(product.left, product.right)


def _overflows(encoding: Encoding, weight: Weight | None = None) -> bool:
    """Whether sums of two products are too large for this machine."""
    if has_wide_sums() or not is_wide(encoding):
        return False
    return weight is None or int(weight.integers.int().abs().max()) > _NARROW


def _replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def _bytes(tensor: torch.Tensor) -> int:
    return int(torch.ops.mkldnn._nbytes(tensor)) if tensor.is_mkldnn else tensor.nbytes
