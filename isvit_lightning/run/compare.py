"""Recipes side by side on one network, under the same conditions."""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from isvit_lightning.callbacks import let_go
from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.networks import open_float
from isvit_lightning.recipe import record_of
from isvit_lightning.run.audit import audit
from isvit_lightning.run.cells import Cell, Cells, grid
from isvit_lightning.run.claim import claimed
from isvit_lightning.run.comparison import Comparison
from isvit_lightning.run.cost import float_block_step
from isvit_lightning.run.fitting import UnitFitter
from isvit_lightning.run.pipeline import Calibration, calibrate_network, require_equal_outputs
from isvit_lightning.run.resumption import deciding_versions
from isvit_lightning.run.runner import Runner
from isvit_lightning.run.unseen import COLUMNS, Distance, Distances, hold_out, require_hold_out
from isvit_lightning.storage.parts import Parts, run_hash
from isvit_lightning.system.memory import forget_peak, peak_memory
from isvit_lightning.system.processes import broadcast_object, lost_connection

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Setting:
    """What all cells of a comparison are measured with.

    Args:
        runner: model, data and trainers.
        calibration: float network, images and schedule.
        held_out: images that no cell is calibrated on, ``(n, 3, height, width)``; n may be 0.
        cells: where cells are kept.
        images: the calibration images, as rows tell them.
    """

    runner: Runner
    calibration: Calibration
    held_out: torch.Tensor
    cells: Cells
    images: Mapping[str, Any]

    @cached_property
    def step(self) -> float:
        """Seconds of a float block step."""
        return _step_seconds(self.runner, self.calibration)

    @cached_property
    def distances(self) -> Distances:
        """Measures networks on calibration images."""
        held_out = self._distance(self.held_out) if len(self.held_out) else None
        return Distances(self._distance(self.calibration.images), held_out)

    def _distance(self, images: torch.Tensor) -> Distance | None:
        runner = self.runner
        return runner.model.task.distance(
            self.calibration.model, images, runner.data.batch_size, runner.evaluating_trainer
        )


def compare(runner: Runner, methods: str, bits: str | None, seeds: str, choose_on: int = 0) -> Comparison:
    """Calibrate and measure every recipe at every width with every seed, and write one table.

    A cell that is measured is not measured again; one that failed is tried again, and is a row that says why.

    Args:
        runner: model, data and trainers.
        methods: names or paths of recipes with commas between them, or ``all``.
        bits: widths such as ``w3a3,w4a4``; None takes those of the configuration.
        seeds: whole numbers with commas between them.
        choose_on: calibration images that are held out to choose a recipe on; 0 for none.

    Raises:
        IsvitError: an option is wrong, or the directory holds cells that were made under other conditions.
    """
    cells = grid(methods, bits, seeds, runner.model.bits)
    require_hold_out(choose_on, runner.data.calibration_images, runner.model.task.compares_with_float)
    with claimed(runner.directory, ("cells", "parts")):
        return _compare(runner, cells, choose_on)


def _compare(runner: Runner, cells: Sequence[Cell], choose_on: int) -> Comparison:
    loaded = runner.load_network()
    calibration, listing = runner.calibration(loaded)
    seed = runner.data.seed or 0
    seen, held_out = hold_out(calibration.images, choose_on, seed)
    calibration = dataclasses.replace(calibration, images=seen)
    held = {"held out": {"number": choose_on, "seed": seed}} if choose_on else {}
    conditions = {
        "network": loaded.fingerprint,
        "preprocessing": record_of(loaded.preprocessing),
        "calibration images": {"number": len(listing.names), "sha256": listing.sha256, **held},
        "evaluation images": dataclasses.asdict(runner.data.evaluation_list()),
        "schedule": record_of(dataclasses.replace(runner.model.schedule, caches=type(runner.model.schedule.caches)())),
        "trainer": dict(runner.machine),
        "versions": deciding_versions(),
    }
    measured = Cells(runner.directory, conditions)
    columns, images = runner.model.task.columns, runner.data.num_evaluation_images
    table = Comparison(runner.model.source.title, columns, images, held_out=choose_on)
    rows = [measured.read(cell, record_of(cell.recipe)) for cell in cells]
    left = [cell for cell, row in zip(cells, rows, strict=True) if row is None]
    _LOG.info("%d of %d cells are left to be measured in %s", len(left), len(cells), runner.directory)
    table.set_float(runner.measure(loaded.model, is_float=True))
    told = runner.calibrated_on(loaded, listing, choose_on)
    setting = _Setting(runner, calibration, held_out, measured, told)
    started, done = time.perf_counter(), 0
    for number, (cell, known) in enumerate(zip(cells, rows, strict=True), 1):
        row = known
        if row is None:
            row = _row(setting, cell)
            measured.write(cell, record_of(cell.recipe), row)
            done += 1
            spent = time.perf_counter() - started
            _LOG.info(
                "cell %d/%d %s seed %d: %s; about %.0f s left",
                number,
                len(cells),
                cell.title,
                cell.seed,
                _summary(row, [name for name, _ in (*columns, *COLUMNS)]),
                spent / done * (len(left) - done),
            )
        table.add(cell, row)
    return table


def _step_seconds(runner: Runner, calibration: Calibration) -> float:
    """Seconds of a float block step where cells compute, the same in every process."""
    schedule = calibration.schedule
    # An evaluation leaves its network on the CPU.
    model = calibration.model.to(torch.device(runner.machine.get("accelerator", "cpu")))
    network = open_float(model, calibration.recipe.reconstruct)
    step = float_block_step(network, calibration.images, schedule.batch_size, schedule.micro_batch)
    model.cpu()
    return broadcast_object(step)


def _row(setting: _Setting, cell: Cell) -> dict[str, Any]:
    """What a cell measures, or why it failed."""
    _LOG.info("%s seed %d begins", cell.title, cell.seed)
    runner, cells, record = setting.runner, setting.cells, record_of(cell.recipe)
    parts = Parts(
        cells.directory / "parts" / cell.key,
        run_hash({**cells.conditions, "recipe": record, "bits": dataclasses.asdict(cell.bits), "seed": cell.seed}),
    )
    step, distances = setting.step, setting.distances
    own = dataclasses.replace(setting.calibration, recipe=cell.recipe, bits=cell.bits, seed=cell.seed, seconds={})
    try:
        require_equal_outputs(own)
        forget_peak()
        fitter = UnitFitter(runner.make_trainer, runner.alone, None, runner.configured_callbacks, parts)
        network = calibrate_network(own, fitter, parts=parts)
        peak, seconds = peak_memory(), sum(own.seconds.values())
        metrics = runner.measure(network.model)
        row = {
            **metrics,
            **distances.row(network.model, metrics),
            "seconds": round(seconds, 2),
            "float_block_steps": round(seconds / step),
            "peak_memory_bytes": peak,
            **audit(network, own, setting.images),
        }
    except Exception as error:  # a recipe that fails is a row; the others go on
        if isinstance(error, RuntimeError) and lost_connection(error):
            raise
        if not isinstance(error, IsvitError):
            _LOG.exception("%s seed %d failed", cell.title, cell.seed)
        row = {
            "failed": str(error) if isinstance(error, IsvitError) else f"{type(error).__name__}: {first_line(error)}"
        }
    else:
        parts.clear()
    let_go()
    return row


def _summary(row: dict[str, Any], names: Sequence[str]) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    metrics = [f"{name} {row[name]:.4g}" for name in names if name in row]
    return f"{', '.join(metrics)}, {row['seconds']:.1f} s"
