"""Opening: from a float network to units, and to a second, quantized network."""

import copy

from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks.adapter import HasMoreThanUnits, adapter_for
from isvit_lightning.networks.factory import QuantizerFactory
from isvit_lightning.networks.opened import OpenedNetwork, Unit
from isvit_lightning.quantizers import Quantizer, Role
from isvit_lightning.recipe.method import Bits, Method, Reconstructed


def open_float(model: nn.Module, reconstruct: Reconstructed = "backbone") -> OpenedNetwork:
    """Units of ``model`` as it is, in evaluation mode and without gradients.

    Args:
        model: float network.
        reconstruct: whether neck and heads of a detector are among the units.

    Raises:
        IsvitError: the architecture, or a part of it, is not supported.
    """
    model.eval().requires_grad_(False)
    return OpenedNetwork(model, _chosen(adapter_for(model).units(), reconstruct))


def open_quantized(model: nn.Module, bits: Bits, method: Method, deployed: bool = False) -> OpenedNetwork:
    """A copy of ``model`` with quantizers in front of every weight and every input of a matrix product.

    Args:
        model: float network; it is left untouched.
        bits: widths of the codes.
        method: choice of quantizers.
        deployed: give post-LayerNorm activations the per-tensor grid that they have after stage 2.

    Raises:
        IsvitError: the architecture, or a part of it, is not supported.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    adapter = adapter_for(model)
    adapter.insert(QuantizerFactory(bits, method, deployed))
    model.eval()
    run = adapter.run if isinstance(adapter, HasMoreThanUnits) else None
    return OpenedNetwork(model, _chosen(adapter.units(), method.reconstruct), adapter.pairs(), run)


def _chosen(units: tuple[Unit, ...], reconstruct: Reconstructed) -> tuple[Unit, ...]:
    return tuple(unit for unit in units if unit.source is None or reconstruct == "all")


def quantizers(module: nn.Module) -> dict[str, Quantizer]:
    """All quantizers below ``module`` by path."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Quantizer)}


def switch(module: nn.Module, *, weights: bool, activations: bool) -> None:
    """Switch the quantizers below ``module`` on or off."""
    for quantizer in quantizers(module).values():
        quantizer.enabled = weights if quantizer.role is Role.WEIGHT else activations


def require_calibrated(module: nn.Module) -> None:
    """Refuse a network that would compute with a grid that nobody chose.

    Raises:
        IsvitError: a quantizer is switched on but not calibrated.
    """
    missing = [name for name, quantizer in quantizers(module).items() if quantizer.enabled and not quantizer.calibrated]
    if missing:
        raise IsvitError(
            f"{len(missing)} quantizers are not calibrated, the first is {missing[0]}; expected all to be: run "
            "`isvit fit` first and pass its run directory with --ckpt_path."
        )
