"""A calibrated network as one that torch.onnx writes: each quantized layer replaced by its ONNX operators."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from isvit_lightning.export.lower import Lowered, LoweredLinear, lower
from isvit_lightning.export.onnx.encoders import Encoder
from isvit_lightning.export.onnx.layers import GraphConv2d, GraphLinear, GraphMatMul, Seen, graph_layer
from isvit_lightning.export.onnx.lookup import FLIPPED_AT_MOST, Range
from isvit_lightning.export.operands import Steps, encoding_of, is_wide
from isvit_lightning.networks import quantizers
from isvit_lightning.quantizers import Quantizer, Role

_SAMPLES = 1 << 18
"""Numbers of each tensor that are kept."""


@dataclass(frozen=True)
class GraphNetwork:
    """What torch.onnx writes.

    Args:
        model: the network.
        flipped: share of the numbers that each lookup flips, by path of its quantizer.
        floats: why products are ones of floats, by path of their layer.
        notes: sentences for the user.
    """

    model: nn.Module
    flipped: Mapping[str, float]
    floats: Mapping[str, str]
    notes: tuple[str, ...]


@torch.no_grad()
def graph_network(
    model: nn.Module, images: torch.Tensor | None, flipped_at_most: float = FLIPPED_AT_MOST
) -> GraphNetwork:
    """Replace the quantized layers of a copy of ``model``.

    Args:
        model: calibrated, of any architecture.
        images: what its staircases are to see; None takes numbers that are spread evenly over the octaves.
        flipped_at_most: share of a tensor's numbers that a lookup may flip.

    Raises:
        IsvitError: a quantizer is not calibrated, or has no integer codes.
    """
    products = lower(model)
    seen = Seen(_ranges(model, images), flipped_at_most, _is_wide(products))
    network = copy.deepcopy(model)
    for path, product in products.items():
        _replace(network, path, graph_layer(product, seen, path))
    for path, quantizer in quantizers(network).items():
        _replace(network, path, seen.encoder(encoding_of(quantizer), path) if quantizer.enabled else nn.Identity())
    encoders = {path: child for path, child in network.named_modules() if isinstance(child, Encoder)}
    flipped = {path: child.flipped for path, child in encoders.items() if child.kind == "lookup"}
    floats = {path: product.reason for path, product in products.items() if product.reason is not None}
    network.eval()
    return GraphNetwork(network, flipped, floats | _floats(network, floats), _notes(products))


def _is_wide(products: Mapping[str, Lowered]) -> bool:
    """Whether a weight meets codes of more than 7 bits."""
    return any(is_wide(product.encoding) for product in products.values() if isinstance(product, LoweredLinear))


def _notes(products: Mapping[str, Lowered]) -> tuple[str, ...]:
    """What engines do slowly."""
    weights = [product.weight for product in products.values() if isinstance(product, LoweredLinear)]
    shifted = sum(weight is not None and bool(weight.zero_point.any()) for weight in weights)
    if not shifted:
        return ()
    note = f"{shifted} weights of 8 bits are int8 with zero points, which some engines compute in float"
    return (f"{note}; up to 7 bits need none.",)


def _floats(network: nn.Module, known: Mapping[str, str]) -> dict[str, str]:
    """Products that have integers of 8 bits, but not in one tensor."""
    layers = {path: child for path, child in network.named_modules() if path not in known}
    sides = {
        path: [side for side in children if side is not None and not side.is_integer]
        for path, child in layers.items()
        if (children := _encoders(child))
    }
    return {path: f"written as {found[0].kind} of floats" for path, found in sides.items() if found}


def _encoders(layer: nn.Module) -> list[Encoder | None]:
    if isinstance(layer, GraphMatMul):
        return [layer.left, layer.right]
    return [layer.encoder] if isinstance(layer, GraphLinear | GraphConv2d) else []


def _replace(network: nn.Module, path: str, child: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, child)


def _ranges(model: nn.Module, images: torch.Tensor | None) -> dict[str, Range]:
    """Samples of what each quantizer with a staircase sees."""
    staircases = {
        path: quantizer
        for path, quantizer in quantizers(model).items()
        if quantizer.enabled and not quantizer.role.weight and isinstance(encoding_of(quantizer), Steps)
    }
    samples: dict[str, list[torch.Tensor]] = {path: [] for path in staircases}
    if images is not None:
        share = -(-_SAMPLES // len(images))
        with _watched(staircases, samples, share):
            for image in torch.split(images, 1):
                model(image)
    return {
        path: Range(torch.cat(samples[path]) if samples[path] else None, quantizer.role == Role.ATTN_PROB)
        for path, quantizer in staircases.items()
    }


@contextmanager
def _watched(
    staircases: Mapping[str, Quantizer], samples: Mapping[str, list[torch.Tensor]], share: int
) -> Iterator[None]:
    """Keep up to ``share`` numbers of each call of the quantizers, at equal distances."""

    def keep(path: str, tensor: torch.Tensor) -> None:
        samples[path].append(tensor.flatten()[:: max(1, tensor.numel() // share)].clone())

    hooks = [
        quantizer.register_forward_pre_hook(lambda _module, inputs, path=path: keep(path, inputs[0]))
        for path, quantizer in staircases.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
