"""What the bits of a network really are."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from isvit_lightning.networks import quantizers
from isvit_lightning.recipe import Bits
from isvit_lightning.run.inspection import float_layers


def audit(model: nn.Module, bits: Bits) -> dict[str, Any]:
    """Codes, values in float and ranges of ``model``.

    Args:
        model: quantized network.
        bits: the widths that it is said to have.
    """
    found = quantizers(model).values()
    extra = [one.role.name for one in found if one.n_codes > 2**one.bits]
    wider = [one.role.name for one in found if one.bits > (bits.weight if one.role.weight else bits.activation)]
    return {
        "n_codes": count_codes(model),
        "n_values": count_values(model),
        "beyond": sorted({*extra, *wider}),
        "float": sorted({*_float_roles(model), *float_layers(model)}),
        "ranges": "dynamic" if any(one.format.dynamic for one in found) else "static",
    }


def count_codes(model: nn.Module) -> dict[str, int]:
    """Most codes of a quantizer of ``model``, by role."""
    counts: dict[str, int] = {}
    for quantizer in quantizers(model).values():
        counts[quantizer.role.name] = max(counts.get(quantizer.role.name, 0), quantizer.n_codes)
    return counts


def count_values(model: nn.Module) -> dict[str, int]:
    """Most distinct values that a grid of ``model`` has, by role; of quantizers that are switched on.

    Codes may share a value: those of a grid that rounds its exponents to whole numbers do.
    """
    counts: dict[str, int] = {}
    for quantizer in quantizers(model).values():
        if quantizer.enabled and quantizer.calibrated:
            changes = quantizer.table().sort(dim=0).values.diff(dim=0) != 0
            values = 1 + int(changes.sum(dim=0).max())
            counts[quantizer.role.name] = max(counts.get(quantizer.role.name, 0), values)
    return counts


def _float_roles(model: nn.Module) -> Sequence[str]:
    """Operands of quantized layers that stay float, by path."""
    names = ("input_quantizer", "weight_quantizer", "left_quantizer", "right_quantizer")
    return [
        f"{path}.{name.removesuffix('_quantizer')}"
        for path, module in model.named_modules()
        for name in names
        if getattr(module, name, module) is None
    ]
