"""Whether integers suffice: layers of an integer network against the simulated ones, on the same inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.runtime.encode import Operand, Snap
from isvit_lightning.export.runtime.layers import FloatLinear, FloatMatMul, IntegerLinear, IntegerMatMul
from isvit_lightning.export.runtime.network import IntegerNetwork
from isvit_lightning.layers import QuantConv2d, QuantLinear, QuantMatMul
from isvit_lightning.quantizers import Quantizer

_SAME = 1e-6
"""Distance of two values of the same code, relative to the largest value of the grid: the last bits of a power."""


@dataclass
class Proof:
    """What was counted.

    Args:
        codes: numbers that were encoded.
        differing: those that got another code.
        distance: largest difference of an output of a layer, relative to the largest of its outputs, by path.
    """

    codes: int = 0
    differing: int = 0
    distance: dict[str, float] = field(default_factory=dict)


@torch.inference_mode()
def prove(network: QuantizedNetwork, integer: IntegerNetwork, images: torch.Tensor) -> Proof:
    """Give each integer layer what the simulated one reads, and count the codes that differ.

    Layers are compared one by one: through a whole network codes flip wherever the last bit of a float before them
    does, in any two ways to compute it.

    Args:
        network: simulated, on the CPU.
        integer: its integer form there.
        images: preprocessed ``(n, 3, height, width)``.
    """
    proof, hooks = Proof(), []
    for path, layer in network.model.named_modules():
        if isinstance(layer, QuantLinear | QuantConv2d | QuantMatMul):
            hook = partial(_compare, proof, path, integer.model.get_submodule(path))
            hooks.append(layer.register_forward_hook(hook))
    try:
        network(images)
    finally:
        for handle in hooks:
            handle.remove()
    return proof


def _compare(proof: Proof, path: str, fast: Any, layer: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
    """What a hook does behind a simulated layer."""
    largest = output.abs().max().clamp_min(torch.finfo(output.dtype).tiny)
    proof.distance[path] = max(proof.distance.get(path, 0.0), float((fast(*inputs) - output).abs().max() / largest))
    for quantizer, values, x in zip(_quantizers(layer), _decoders(fast), inputs, strict=True):
        if quantizer is not None and quantizer.enabled and values is not None:
            same = _SAME * float(quantizer.table().abs().max())
            proof.codes += x.numel()
            proof.differing += int(((values(x) - quantizer(x)).abs() > same).sum())


def _quantizers(layer: QuantLinear | QuantConv2d | QuantMatMul) -> tuple[Quantizer | None, ...]:
    if isinstance(layer, QuantMatMul):
        return layer.left_quantizer, layer.right_quantizer
    return (layer.input_quantizer,)


def _decoders(layer: nn.Module) -> tuple[Callable[[torch.Tensor], torch.Tensor] | None, ...]:
    """What gives the values of each operand, by way of its integers where it has some."""
    if isinstance(layer, IntegerMatMul):
        return partial(_decoded, layer.left), partial(_decoded, layer.right)
    if isinstance(layer, IntegerLinear):
        return (partial(_decoded, layer.operand),)
    if isinstance(layer, FloatMatMul):
        return layer.left, layer.right
    return (layer.snap,) if isinstance(layer, FloatLinear) and isinstance(layer.snap, Snap) else (None,)


def _decoded(operand: Operand, x: torch.Tensor) -> torch.Tensor:
    zero_point = 0.0 if operand.zero_point is None else operand.zero_point
    parts = zip(operand.units, operand(x), strict=True)
    total = torch.stack([unit * (part.float() - zero_point) for unit, part in parts]).sum(dim=0)
    return operand.factor * total - operand.shift
