"""A network by the specs of its quantizers: what a file holds of a finished one."""

from collections.abc import Mapping

import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import give_affine
from isvit_lightning.networks.factory import Axes
from isvit_lightning.networks.open import Reconstructed, open_quantized, quantizers
from isvit_lightning.networks.opened import OpenedNetwork
from isvit_lightning.quantizers import Quantizer, Role, Spec


def specs_of(model: nn.Module) -> dict[str, Spec]:
    """The spec of each quantizer of ``model`` by path."""
    return {path: quantizer.spec for path, quantizer in quantizers(model).items()}


def open_by_specs(
    model: nn.Module,
    specs: Mapping[str, Spec],
    state: Mapping[str, torch.Tensor],
    reconstruct: Reconstructed = "backbone",
) -> OpenedNetwork:
    """A copy of ``model`` with the quantizers that ``specs`` describe, whatever made them; grids are not filled.

    Args:
        model: float network; it is left untouched.
        specs: by path of the quantizer.
        state: names of the tensors that are to be loaded; a layer or norm gets a bias where they hold one.
        reconstruct: whether units that do not read the one before them are among the units.

    Raises:
        IsvitError: the network has other quantizers, or cannot be opened.
    """
    roles = {spec.role: spec for spec in specs.values()}

    def build(role: Role, _axes: Axes) -> Quantizer | None:
        return Quantizer(roles[role]) if role in roles else None

    opened = open_quantized(model, build, reconstruct)
    made = quantizers(opened.model)
    strangers = sorted(made.keys() ^ specs.keys())
    if strangers:
        raise IsvitError(
            f"The network and the description of its quantizers disagree (first difference: {strangers[0]}), expected "
            "a quantizer for each description: the file belongs to another network, or was written by another version."
        )
    for path, spec in specs.items():
        parent, _, name = path.rpartition(".")
        setattr(opened.model.get_submodule(parent), name, Quantizer(spec))
    _add_what_folds_made(opened.model, state)
    opened.model.eval()
    return opened


def _add_what_folds_made(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Give each layer whose bias a fold made room for it, and each norm for its weight and bias."""
    like = next(model.parameters())
    for path, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and f"{path}.bias" in state:
            give_affine(module, like)
        weight = getattr(module, "weight", None)
        if f"{path}.bias" in state and getattr(module, "bias", weight) is None and weight is not None:
            module.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=False)
