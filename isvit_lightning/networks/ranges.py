"""Choosing the ranges of the quantizers of a module from data."""

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from isvit_lightning.networks.open import quantizers
from isvit_lightning.quantizers import PerTensor, Quantizer, Role


def calibrate_weights(module: nn.Module) -> None:
    """Choose and freeze the grid of every weight below ``module``."""
    for name, quantizer in quantizers(module).items():
        if quantizer.role is Role.WEIGHT:
            layer = module.get_submodule(name.rpartition(".")[0])
            quantizer.unfreeze()
            quantizer.calibrate(layer.get_parameter("weight"))
            quantizer.freeze()


@torch.no_grad()
def calibrate_activations(module: nn.Module, run: Callable[[], object]) -> None:
    """Choose and freeze the grid of every activation below ``module``.

    Each quantizer sees what the quantizers before it have already quantized. One that a pass meets several times (a
    layer that detectors share among the levels of a pyramid) chooses from all it meets, in a second pass.

    Args:
        module: holds the quantizers; those that are switched off are left alone.
        run: one forward pass through ``module``.
    """
    chosen = [q for q in quantizers(module).values() if q.role is not Role.WEIGHT and q.enabled]
    calls: Counter[nn.Module] = Counter()

    def choose(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        calls[module] += 1
        _choose(module, args[0])

    _hooked(chosen, choose, run)
    repeated = [quantizer for quantizer in chosen if calls[quantizer] > 1]
    if repeated:
        _calibrate_on_all_calls(repeated, run)


def _calibrate_on_all_calls(repeated: list[Quantizer], run: Callable[[], object]) -> None:
    """Choose the grids of ``repeated`` from everything that a pass without them shows them."""
    seen: dict[nn.Module, list[torch.Tensor]] = {quantizer: [] for quantizer in repeated}
    for quantizer in repeated:
        quantizer.enabled = False
    _hooked(repeated, lambda module, args: seen[module].append(_rows(module, args[0])), run)
    for quantizer in repeated:
        quantizer.enabled = True
        _choose(quantizer, torch.cat(seen.pop(quantizer)))


def _rows(module: nn.Module, samples: torch.Tensor) -> torch.Tensor:
    """``samples`` in a form that maps of several sizes can be joined in; channels stay apart where they count."""
    per_tensor = isinstance(cast("Quantizer", module).granularity, PerTensor)
    return samples.flatten() if per_tensor else samples.flatten(0, -2)


def _hooked(modules: list[Quantizer], hook: Callable[[nn.Module, Any], None], run: Callable[[], object]) -> None:
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


def _choose(module: nn.Module, samples: torch.Tensor) -> None:
    if isinstance(module, Quantizer):
        module.unfreeze()
        module.calibrate(samples)
        module.freeze()
