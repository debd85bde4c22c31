"""The dry run: units, wires, quantizers and memory, before anything is calibrated."""

from collections.abc import Iterator, Mapping
from math import prod

import torch
from rich.table import Table
from torch import nn

from isvit_lightning.data import CalibrationDataModule
from isvit_lightning.networks import SINGLE, Data, OpenedNetwork, Unit, open_float, quantizers
from isvit_lightning.run.task import ModelSection
from isvit_lightning.storage.caches import Caches, peak_values
from isvit_lightning.transforms import is_foldable

_BYTES_PER_IMAGE_VALUE = 4


def inspect(model: ModelSection, data: CalibrationDataModule) -> Iterator[Table]:
    """Tables of units with their caches, of wires that a fold changes, and of quantizers.

    Args:
        model: the model section of the configuration.
        data: the configured data; only the number of images is read.
    """
    loaded = model.source.build()
    data.attach(loaded.preprocessing)
    opened = model.recipe.open(loaded.model, model.bits)
    values = cache_values(open_float(loaded.model, model.recipe.reconstruct), data.input_size)
    yield _units(opened, values, data, model.schedule.caches)
    yield _wires(opened)
    yield _quantizers(opened.model)
    left = float_layers(opened.model)
    if left:
        yield _float_layers(left)


def float_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions of a quantized network that compute in float all the same, by path."""
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def require_space(caches: Caches, network: OpenedNetwork, data: CalibrationDataModule) -> None:
    """Refuse to begin where caches go to a disk that cannot hold them and the images.

    Args:
        caches: where they go.
        network: float network.
        data: its data, which knows how images are preprocessed.

    Raises:
        IsvitError: the disk is too small.
    """
    if caches.uses_files:
        images, units = needs(cache_values(network, data.input_size), data, caches)
        caches.require_space(images + units)


def needs(values: Mapping[str, tuple[int, int]], data: CalibrationDataModule, caches: Caches) -> tuple[int, int]:
    """Bytes of the calibration images, and the largest ones of the caches; none of these where they are recomputed.

    Args:
        values: what :func:`cache_values` gives.
        data: number and size of the images.
        caches: where they go, and their precision.
    """
    count = data.calibration_images
    return prod(data.input_size) * _BYTES_PER_IMAGE_VALUE * count, peak_values(values) * caches.bytes_per_value * count


def cache_values(network: OpenedNetwork, input_size: tuple[int, int, int]) -> dict[str, tuple[int, int]]:
    """Numbers that input and output of each unit hold per image.

    Args:
        network: float network.
        input_size: ``(3, height, width)``.
    """
    sizes: dict[str, tuple[int, int]] = {}
    images = torch.zeros(1, *input_size)
    value = {SINGLE: images}
    with torch.no_grad():
        for unit in network.units:
            entered = unit.entered(value) if unit.source is None else unit.source(network.model, images)
            value = unit(entered)
            sizes[unit.name] = (_values(entered), _values(value))
    return sizes


def _values(data: Data) -> int:
    return sum(tensor.numel() for tensor in data.values())


def _units(
    network: OpenedNetwork, values: dict[str, tuple[int, int]], data: CalibrationDataModule, caches: Caches
) -> Table:
    images, need = needs(values, data, caches)
    where = {
        "memory": f"up to {need / 1e6:.0f} MB in memory in {caches.precision}",
        "disk": f"up to {need / 1e6:.0f} MB on disk in {caches.precision}",
        "recompute": "0 MB, recomputed in each step",
    }[caches.where]
    table = Table(
        title=f"{len(network.units)} units; {data.calibration_images} images take {images / 1e6:.0f} MB, caches {where}"
    )
    for column in ("unit", "weights", "input MB", "output MB"):
        table.add_column(column, justify="left" if column == "unit" else "right")
    for unit in network.units:
        sizes = [value * caches.bytes_per_value * data.calibration_images / 1e6 for value in values[unit.name]]
        table.add_row(unit.name, f"{_weights(unit):,}", *(f"{size:.1f}" for size in sizes))
    return table


def _weights(unit: Unit) -> int:
    return sum(parameter.numel() for parameter in unit.module.parameters())


def _wires(network: OpenedNetwork) -> Table:
    wires = [wire for wire in network.wires if is_foldable(wire)]
    table = Table(
        "unit", "linear layer behind the norm", "channels", title=f"{len(wires)} norms with a grid by channel"
    )
    for wire in wires:
        table.add_row(wire.unit, wire.name, str(wire.norm.normalized_shape[0]))
    return table


def _quantizers(model: nn.Module) -> Table:
    found = quantizers(model)
    weights = sum(quantizer.role.weight for quantizer in found.values())
    table = Table(title=f"{len(found) - weights} activation and {weights} weight quantizers")
    for column in ("quantizer", "role", "format", "bits", "codes", "granularity"):
        table.add_column(column)
    for name, quantizer in found.items():
        kind = type(quantizer.format).__name__
        bits, codes = str(quantizer.bits), str(quantizer.n_codes)
        table.add_row(name, quantizer.role.name, kind, bits, codes, str(quantizer.granularity))
    return table


def _float_layers(layers: Mapping[str, nn.Module]) -> Table:
    table = Table("layer", "kind", title=f"{len(layers)} layers stay float")
    for name, module in layers.items():
        table.add_row(name, type(module).__name__)
    return table
