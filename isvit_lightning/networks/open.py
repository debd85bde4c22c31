"""Opening: from a float network to units, and to a second, quantized network."""

import copy
import pickle
from typing import Literal

from torch import nn

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.networks.adapter import HasMoreThanUnits, adapter_for
from isvit_lightning.networks.factory import Build, LayerFactory
from isvit_lightning.networks.known import copy_error, require_own_forwards
from isvit_lightning.networks.opened import OpenedNetwork, Unit
from isvit_lightning.quantizers import Quantizer
from isvit_lightning.system.faults import is_out_of_memory

Reconstructed = Literal["backbone", "all"]


def open_float(model: nn.Module, reconstruct: Reconstructed = "backbone") -> OpenedNetwork:
    """Units of ``model`` as it is, in evaluation mode and without gradients.

    Args:
        model: float network.
        reconstruct: whether units that do not read the one before them are among the units.

    Raises:
        IsvitError: the architecture, or a part of it, is not supported.
    """
    model.eval().requires_grad_(False)
    adapter = adapter_for(model)
    return OpenedNetwork(model, _chosen(adapter.units(), reconstruct), adapter.wires())


def open_quantized(
    model: nn.Module, factory: LayerFactory | Build, reconstruct: Reconstructed = "backbone"
) -> OpenedNetwork:
    """A copy of ``model`` with quantizers in front of its weights and of the inputs of its matrix products.

    Args:
        model: float network; it is left untouched.
        factory: says which quantizer stands where.
        reconstruct: whether units that do not read the one before them are among the units.

    Raises:
        IsvitError: the architecture, or a part of it, is not supported.
    """
    model = copied(model)
    model.eval()
    adapter = adapter_for(model)
    factory = factory if isinstance(factory, LayerFactory) else LayerFactory(factory)
    factory.enter(model)
    adapter.insert(factory)
    model.eval()
    run = adapter.run if isinstance(adapter, HasMoreThanUnits) else None
    return OpenedNetwork(model, _chosen(adapter.units(), reconstruct), adapter.wires(), run)


def copied(model: nn.Module) -> nn.Module:
    """A copy of ``model`` without gradients.

    Raises:
        IsvitError: it cannot be copied, or the copy could run parts of the original.
    """
    require_own_forwards(model)
    try:
        return copy.deepcopy(model).requires_grad_(False)
    except (RuntimeError, TypeError, AttributeError, pickle.PicklingError) as error:
        if is_out_of_memory(error):
            raise
        raise copy_error(model, first_line(error)) from error


def _chosen(units: tuple[Unit, ...], reconstruct: Reconstructed) -> tuple[Unit, ...]:
    return tuple(unit for unit in units if unit.source is None or reconstruct == "all")


def quantizers(module: nn.Module) -> dict[str, Quantizer]:
    """All quantizers below ``module`` by path."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Quantizer)}


def switch(module: nn.Module, *, weights: bool, activations: bool) -> None:
    """Switch the quantizers below ``module`` on or off."""
    for quantizer in quantizers(module).values():
        quantizer.enabled = weights if quantizer.role.weight else activations


def refresh(module: nn.Module) -> None:
    """Tell the quantizers below ``module`` that their grids were changed from outside."""
    for quantizer in quantizers(module).values():
        quantizer.refresh()


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
