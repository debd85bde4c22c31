"""Recipes side by side on one network, under the same conditions."""

import dataclasses
import logging
import time
from collections.abc import Sequence
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
from isvit_lightning.storage.parts import Parts, run_hash
from isvit_lightning.system.memory import forget_peak, peak_memory
from isvit_lightning.system.processes import broadcast_object, lost_connection

_LOG = logging.getLogger(__name__)


def compare(runner: Runner, methods: str, bits: str | None, seeds: str) -> Comparison:
    """Calibrate and measure every recipe at every width with every seed, and write one table.

    A cell that is measured is not measured again; one that failed is tried again, and is a row that says why.

    Args:
        runner: model, data and trainers.
        methods: names or paths of recipes with commas between them, or ``all``.
        bits: widths such as ``w3a3,w4a4``; None takes those of the configuration.
        seeds: whole numbers with commas between them.

    Raises:
        IsvitError: an option is wrong, or the directory holds cells that were made under other conditions.
    """
    cells = grid(methods, bits, seeds, runner.model.bits)
    with claimed(runner.directory, ("cells", "parts")):
        return _compare(runner, cells)


def _compare(runner: Runner, cells: Sequence[Cell]) -> Comparison:
    loaded = runner.load_network()
    calibration, listing = runner.calibration(loaded)
    conditions = {
        "network": loaded.fingerprint,
        "preprocessing": record_of(loaded.preprocessing),
        "calibration images": {"number": len(listing.names), "sha256": listing.sha256},
        "evaluation images": dataclasses.asdict(runner.data.evaluation_list()),
        "schedule": record_of(dataclasses.replace(runner.model.schedule, caches=type(runner.model.schedule.caches)())),
        "trainer": dict(runner.machine),
        "versions": deciding_versions(),
    }
    measured = Cells(runner.directory, conditions)
    table = Comparison(runner.model.source.title, runner.model.task.columns, runner.data.num_evaluation_images)
    rows = [measured.read(cell, record_of(cell.recipe)) for cell in cells]
    left = [cell for cell, row in zip(cells, rows, strict=True) if row is None]
    _LOG.info("%d of %d cells are left to be measured in %s", len(left), len(cells), runner.directory)
    table.set_float(runner.measure(loaded.model, is_float=True))
    step = _step_seconds(runner, calibration) if left else 0.0
    started, done = time.perf_counter(), 0
    for number, (cell, known) in enumerate(zip(cells, rows, strict=True), 1):
        row = known
        if row is None:
            row = _row(runner, calibration, cell, measured, step)
            measured.write(cell, record_of(cell.recipe), row)
            done += 1
            spent = time.perf_counter() - started
            _LOG.info(
                "cell %d/%d %s seed %d: %s; about %.0f s left",
                number,
                len(cells),
                cell.title,
                cell.seed,
                _summary(row, [name for name, _ in runner.model.task.columns]),
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


def _row(runner: Runner, calibration: Calibration, cell: Cell, cells: Cells, step: float) -> dict[str, Any]:
    """What a cell measures, or why it failed."""
    _LOG.info("%s seed %d begins", cell.title, cell.seed)
    record = record_of(cell.recipe)
    parts = Parts(
        cells.directory / "parts" / cell.key,
        run_hash({**cells.conditions, "recipe": record, "bits": dataclasses.asdict(cell.bits), "seed": cell.seed}),
    )
    own = dataclasses.replace(calibration, recipe=cell.recipe, bits=cell.bits, seed=cell.seed, seconds={})
    try:
        require_equal_outputs(own)
        forget_peak()
        fitter = UnitFitter(runner.make_trainer, runner.alone, None, runner.configured_callbacks, parts)
        model = calibrate_network(own, fitter, parts=parts).model
        peak, seconds = peak_memory(), sum(own.seconds.values())
        row = {
            **runner.measure(model),
            "seconds": round(seconds, 2),
            "float_block_steps": round(seconds / step),
            "peak_memory_bytes": peak,
            **audit(model, cell.bits),
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
