"""What a result rests on: what the bits of a network really are, and what it was calibrated on and how long."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from isvit_lightning.data.selection import CalibrationList
from isvit_lightning.layers import QuantConv2d, QuantLinear
from isvit_lightning.networks import OpenedNetwork, Unit, quantizers
from isvit_lightning.quantizers import Quantizer
from isvit_lightning.recipe import Bits, Recipe
from isvit_lightning.run.inspection import float_layers
from isvit_lightning.run.pipeline import Calibration
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.stages import Schedule

FLOAT_BITS = 32
"""Bits of what stays float."""


def audit(network: OpenedNetwork, calibration: Calibration, images: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides whether a result may be compared with another one.

    Args:
        network: quantized.
        calibration: what it was calibrated with; its widths are those that the network is said to have.
        images: what :func:`calibrated_on` gives.

    Returns:
        Codes and distinct values by role; roles with codes beyond the widths; values that stay float; whether ranges
        are static; bits of the first and of the last layer; calibration images; iterations and images of each step.
    """
    return {
        **audit_codes(network.model, calibration.bits),
        "stem": _bits_of(network.units[0]),
        "head": _bits_of(network.units[-1]),
        "calibration": dict(images),
        "steps": _steps(calibration.recipe, calibration.schedule),
    }


def audit_codes(model: nn.Module, bits: Bits) -> dict[str, Any]:
    """That part of :func:`audit` which a network alone tells.

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


def calibrated_on(listing: CalibrationList, preprocessing: Preprocessing, held_out: int = 0) -> dict[str, Any]:
    """The images of a calibration: their number, those that were held out of them, the hash and the transform in words.

    Args:
        listing: all calibration images.
        preprocessing: how each is prepared.
        held_out: how many of them the network never saw.
    """
    kept = {"held_out": held_out} if held_out else {}
    number = len(listing.names) - held_out
    return {"images": number, **kept, "sha256": listing.sha256, "transform": in_words(preprocessing)}


def in_words(preprocessing: Preprocessing) -> str:
    """Every choice of a preprocessing by name, such as ``input size 3 × 224 × 224, …, crop pct 0.9``."""
    values = {entry.name: getattr(preprocessing, entry.name) for entry in dataclasses.fields(preprocessing)}
    told = [f"{name.replace('_', ' ')} {_told(name, value)}" for name, value in values.items()]
    return ", ".join(told)


def _told(name: str, value: Any) -> str:
    return (" × " if name.endswith("size") else " ").join(map(str, value)) if isinstance(value, tuple) else str(value)


def _bits_of(unit: Unit) -> dict[str, int] | None:
    """Bits of input and weight of a unit that is one layer; None for units that are more."""
    layer = unit.module
    if not isinstance(layer, QuantLinear | QuantConv2d):
        is_float = isinstance(layer, nn.Linear | nn.Conv2d)
        return {"input": FLOAT_BITS, "weight": FLOAT_BITS} if is_float else None
    return {"input": _width(layer.input_quantizer), "weight": _width(layer.weight_quantizer)}


def _width(quantizer: Quantizer | None) -> int:
    return FLOAT_BITS if quantizer is None else quantizer.bits


def _steps(recipe: Recipe, schedule: Schedule) -> dict[str, dict[str, int]]:
    """What each step takes, by its name; nothing for steps without iterations."""
    found: dict[str, dict[str, int]] = {}
    for step in recipe.steps:
        iterations = step.iterations_of(schedule)
        unit = "iterations_per_unit" if step.tunes else "iterations"
        taken = {} if iterations is None else {unit: iterations, "batch_size": step.batch_size_of(schedule)}
        found[step.name] = taken
    return found


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
