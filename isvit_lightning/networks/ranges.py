"""Choosing the ranges of the quantizers of a module from data."""

from collections.abc import Callable

import torch
from torch import nn

from isvit_lightning.networks.open import quantizers
from isvit_lightning.quantizers import Quantizer, Role


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

    Each quantizer sees what the quantizers before it have already quantized.

    Args:
        module: holds the quantizers; those that are switched off are left alone.
        run: one forward pass through ``module``.
    """
    chosen = [q for q in quantizers(module).values() if q.role is not Role.WEIGHT and q.enabled]
    handles = [quantizer.register_forward_pre_hook(_calibrate_first) for quantizer in chosen]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


def _calibrate_first(module: nn.Module, args: tuple[torch.Tensor]) -> None:
    if isinstance(module, Quantizer):
        module.unfreeze()
        module.calibrate(args[0])
        module.freeze()
