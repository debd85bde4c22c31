"""The dry run: units, pairs, quantizers and memory, before anything is calibrated."""

from collections.abc import Iterator

import torch
from rich.table import Table
from torch import nn

from isvit_lightning.classifier import Classifier
from isvit_lightning.data import CalibrationDataModule
from isvit_lightning.networks import OpenedNetwork, Unit, open_float, open_quantized, quantizers
from isvit_lightning.quantizers import Role

_BYTES_PER_VALUE = 4


def inspect(model: Classifier, data: CalibrationDataModule) -> Iterator[Table]:
    """Tables of units with their caches, of pairs, and of quantizers.

    Args:
        model: the configured classifier.
        data: the configured data; only the number of images is read.
    """
    loaded = model.source.build()
    size = loaded.preprocessing.input_size
    opened = open_quantized(loaded.model, model.bits, model.method)
    yield _units(opened, cache_bytes(open_float(loaded.model), size), data.calibration_images)
    yield _pairs(opened)
    yield _quantizers(opened.model)


def cache_bytes(network: OpenedNetwork, input_size: tuple[int, int, int]) -> dict[str, tuple[int, int]]:
    """Bytes that input and output of each unit take per image.

    Args:
        network: float network.
        input_size: ``(3, height, width)``.
    """
    sizes: dict[str, tuple[int, int]] = {}
    value = torch.zeros(1, *input_size)
    with torch.no_grad():
        for unit in network.units:
            entered = unit.enter(value)
            value = unit.module(entered)
            sizes[unit.name] = (entered.numel() * _BYTES_PER_VALUE, value.numel() * _BYTES_PER_VALUE)
    return sizes


def _units(network: OpenedNetwork, sizes: dict[str, tuple[int, int]], images: int) -> Table:
    # Stage 3 keeps float inputs, quantized inputs and targets of one unit.
    need = max(2 * inputs + output for inputs, output in sizes.values()) * images
    table = Table(title=f"{len(network.units)} units; caches take up to {need / 1e6:.0f} MB for {images} images")
    for column in ("unit", "weights", "input MB", "output MB"):
        table.add_column(column, justify="left" if column == "unit" else "right")
    for unit in network.units:
        inputs, output = sizes[unit.name]
        table.add_row(unit.name, f"{_weights(unit):,}", f"{inputs * images / 1e6:.1f}", f"{output * images / 1e6:.1f}")
    return table


def _weights(unit: Unit) -> int:
    return sum(parameter.numel() for parameter in unit.module.parameters())


def _pairs(network: OpenedNetwork) -> Table:
    table = Table("unit", "linear layer behind the norm", "channels", title=f"{len(network.pairs)} pairs for stage 2")
    for pair in network.pairs:
        table.add_row(pair.unit, pair.name, str(pair.linear.in_features))
    return table


def _quantizers(model: nn.Module) -> Table:
    found = quantizers(model)
    weights = sum(quantizer.role is Role.WEIGHT for quantizer in found.values())
    table = Table(title=f"{len(found) - weights} activation and {weights} weight quantizers")
    for column in ("quantizer", "role", "kind", "bits", "codes", "granularity"):
        table.add_column(column)
    for name, quantizer in found.items():
        kind = type(quantizer).__name__.removesuffix("Quantizer").lower()
        bits, codes = str(quantizer.bits), str(quantizer.n_codes)
        table.add_row(name, quantizer.role.value, kind, bits, codes, str(quantizer.granularity))
    return table
