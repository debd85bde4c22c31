"""Measures, per unit and quantizer, how well the grids fit."""

from dataclasses import astuple, dataclass, fields
from typing import cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from isvit_lightning.networks import Data, Unit, quantizers
from isvit_lightning.quantizers import Quantizer
from isvit_lightning.stages import UnitStage
from isvit_lightning.storage.tables import Table
from isvit_lightning.system.processes import rank


@dataclass(frozen=True)
class GridUse:
    """How one tensor uses its grid.

    Args:
        low: smallest value seen.
        high: largest value seen.
        used_codes: distinct codes that occurred.
        n_codes: codes that exist.
        clipped: share of elements more than half a step away from the first or last code that they take, 0 to 1.
        snr_db: signal to quantization noise, in decibel.
    """

    low: float
    high: float
    used_codes: int
    n_codes: int
    clipped: float
    snr_db: float


def measure(quantizer: Quantizer, tensor: torch.Tensor) -> GridUse:
    """Measure ``quantizer`` on ``tensor`` of any shape that it accepts."""
    codes = quantizer.encode(tensor)
    values = quantizer.decode(codes)
    error = values - tensor
    power, noise = tensor.square().mean(), error.square().mean()
    last = quantizer.n_codes - 1
    clipped = torch.zeros_like(codes, dtype=torch.bool)
    for outer, inner in ((0, 1), (last, last - 1)):
        edge, neighbour = (quantizer.decode(torch.full_like(codes, code)) for code in (outer, inner))
        # A value within half a step beyond the outermost code rounds to it; only what lies farther is clipped.
        clipped |= (codes == outer) & (error.abs() > (edge - neighbour).abs() * 0.5 * (1 + 1e-6))
    return GridUse(
        low=float(tensor.min()),
        high=float(tensor.max()),
        used_codes=len(torch.unique(codes)),
        n_codes=quantizer.n_codes,
        clipped=float(clipped.float().mean()),
        snr_db=float(10 * torch.log10(power / noise.clamp_min(torch.finfo(noise.dtype).tiny))),
    )


GRID_COLUMNS = ("step", "unit", "quantizer", *(field.name for field in fields(GridUse)))


class WatchQuantizers(Callback):
    """Writes range, used codes, clipped share and SNR of each quantizer when its unit is finished.

    Args:
        table: where they are written in the first process, with the columns ``GRID_COLUMNS``; None measures nothing.
        images: calibration images to measure on.
    """

    def __init__(self, table: Table | None = None, images: int = 8) -> None:
        self._table, self.images = table, images

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the finished unit."""
        stage = cast("UnitStage", pl_module)
        if self._table is None:
            return
        sample = stage.sample(self.images)
        if rank() == 0:
            uses = measure_unit(stage.unit, sample)
            self._table.add((stage.name, stage.unit.name, name, *astuple(use)) for name, use in uses.items())


@torch.no_grad()
def measure_unit(unit: Unit, inputs: Data) -> dict[str, GridUse]:
    """Grid use of every switched-on quantizer below ``unit`` in one pass over ``inputs``."""
    uses: dict[str, GridUse] = {}
    handles = []
    for name, quantizer in quantizers(unit.module).items():
        if not quantizer.enabled or not quantizer.format.has_codes(quantizer.grid):
            continue

        def record(module: nn.Module, args: tuple[torch.Tensor], name: str = name) -> None:
            uses[name] = measure(cast("Quantizer", module), args[0])

        handles.append(quantizer.register_forward_pre_hook(record))
    try:
        unit(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return uses
