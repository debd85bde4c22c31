"""Choosing the grids of the quantizers of a module from data."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from isvit_lightning.layers import QuantConv2d, QuantLinear, QuantMatMul
from isvit_lightning.networks.open import quantizers
from isvit_lightning.quantizers import Operand, PerTensor, Quantizer, Site


def calibrate_weights(module: nn.Module) -> None:
    """Choose the grid of every weight below ``module``."""
    for name, quantizer in quantizers(module).items():
        if quantizer.role.weight:
            layer: Any = module.get_submodule(name.rpartition(".")[0])
            quantizer.calibrate(Site(layer.weight, layer, "weight"))


@torch.no_grad()
def calibrate_activations(module: nn.Module, run: Callable[[], object]) -> None:
    """Choose the grid of every activation below ``module``.

    Each quantizer sees what the quantizers before it have already quantized. One that a pass meets several times (a
    layer that is shared among the levels of a pyramid) chooses from all it meets, in a second pass.

    Args:
        module: holds the quantizers; those that are switched off are left alone.
        run: one forward pass through ``module``.
    """
    chosen = [q for q in quantizers(module).values() if not q.role.weight and q.enabled]
    calls: Counter[nn.Module] = Counter()
    readers = _readers(module)
    partners: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def remember(product: nn.Module, args: tuple[torch.Tensor, torch.Tensor]) -> None:
        partners[product] = args

    def forget(product: nn.Module, _args: object, _output: object) -> None:
        # Operands of all blocks at once would be the peak of memory.
        del partners[product]

    def choose(quantizer: Quantizer, args: tuple[torch.Tensor]) -> None:
        calls[quantizer] += 1
        quantizer.calibrate(_site(args[0], *readers.get(quantizer, (None, "input")), partners))

    products = [child for child in module.modules() if isinstance(child, QuantMatMul)]
    handles = [product.register_forward_pre_hook(remember) for product in products]
    handles += [product.register_forward_hook(forget) for product in products]
    try:
        _hooked(chosen, choose, run)
    finally:
        for handle in handles:
            handle.remove()
    repeated = [quantizer for quantizer in chosen if calls[quantizer] > 1]
    if repeated:
        _calibrate_on_all_calls(repeated, run)


def _readers(module: nn.Module) -> dict[nn.Module, tuple[Any, Operand]]:
    """The layer that reads each activation, and as which operand."""
    readers: dict[nn.Module, tuple[Any, Operand]] = {}
    for child in module.modules():
        if isinstance(child, QuantLinear | QuantConv2d) and child.input_quantizer is not None:
            readers[child.input_quantizer] = (child, "input")
        elif isinstance(child, QuantMatMul):
            sides: tuple[tuple[Quantizer | None, Operand], ...] = (
                (child.left_quantizer, "left"),
                (child.right_quantizer, "right"),
            )
            readers |= {quantizer: (child, side) for quantizer, side in sides if quantizer is not None}
    return readers


def _site(
    samples: torch.Tensor, layer: Any, operand: Operand, partners: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]
) -> Site:
    if layer is None:
        return Site(samples)
    if operand == "input":
        return Site(samples, layer, operand, layer.weight)
    left, right = partners[layer]
    return Site(samples, layer, operand, right if operand == "left" else left)


def _calibrate_on_all_calls(repeated: list[Quantizer], run: Callable[[], object]) -> None:
    """Choose the grids of ``repeated`` from everything that a pass without them shows them."""
    seen: dict[nn.Module, list[torch.Tensor]] = {quantizer: [] for quantizer in repeated}
    for quantizer in repeated:
        quantizer.enabled = False
    _hooked(repeated, lambda quantizer, args: seen[quantizer].append(_rows(quantizer, args[0])), run)
    for quantizer in repeated:
        quantizer.enabled = True
        quantizer.calibrate(torch.cat(seen.pop(quantizer)))


def _rows(quantizer: Quantizer, samples: torch.Tensor) -> torch.Tensor:
    """``samples`` in a form that maps of several sizes can be joined in; channels stay apart where they count."""
    return samples.flatten() if isinstance(quantizer.granularity, PerTensor) else samples.flatten(0, -2)


def _hooked(modules: list[Quantizer], hook: Callable[[Any, Any], None], run: Callable[[], object]) -> None:
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
