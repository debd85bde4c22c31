"""Whether a run directory holds a run of the same kind, and what becomes of it."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isvit_lightning.data.selection import CalibrationList
from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import record_of
from isvit_lightning.run.results import versions
from isvit_lightning.run.task import ModelSection
from isvit_lightning.sources.source import LoadedNetwork
from isvit_lightning.storage.aside import set_aside
from isvit_lightning.storage.parts import Parts, differences, run_hash
from isvit_lightning.system.processes import broadcast_object, rank

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumption:
    """How a run begins.

    Args:
        parts: its finished parts; none are there if it begins afresh.
        resumes: whether it goes on with an earlier one.
        finished: whether there is nothing left to do.
    """

    parts: Parts
    resumes: bool
    finished: bool


def fingerprint(
    model: ModelSection, loaded: LoadedNetwork, images: CalibrationList, seed: int, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides the bits of a result, by option.

    Args:
        model: the model section of the configuration.
        loaded: its float network.
        images: what it is calibrated on.
        seed: seed of the run.
        machine: choices of the trainer: device, number of processes, precision.
    """
    schedule = model.schedule
    content = {
        "model": {
            "network": loaded.fingerprint,
            "preprocessing": dataclasses.asdict(loaded.preprocessing),
            "bits": dataclasses.asdict(model.bits),
            "recipe": record_of(model.recipe),
            "iterations": schedule.iterations,
            "batch_size": schedule.batch_size,
            "micro_batch": schedule.micro_batch,
            "compile": schedule.compile,
            "caches": {
                # Memory and disk hold the same bits; what is recomputed is rounded otherwise.
                "where": "recompute" if schedule.caches.where == "recompute" else "memory or disk",
                "precision": schedule.caches.precision,
                "chunk": schedule.caches.chunk,
            },
        },
        "calibration images": {"number": len(images.names), "sha256": images.sha256},
        "seed_everything": seed,
        "trainer": dict(machine),
        "versions": deciding_versions(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def deciding_versions() -> dict[str, str]:
    """Versions of the packages that decide the bits of a result."""
    installed = versions()
    return {name: installed[name] for name in ("isvit-lightning", "torch")}


def begin(directory: Path, run: Mapping[str, Any], resume: bool, overwrite: bool = False) -> Resumption:
    """Look at the run directory, and set a run aside that is not resumed. All processes must call it.

    A directory belongs to one kind of run: its files, and what is measured later, must never be of two.

    Args:
        directory: run directory.
        run: fingerprint of the run.
        resume: go on with an interrupted run, or leave a finished one alone, if there is one of this kind.
        overwrite: set a run of another kind aside too.

    Raises:
        IsvitError: the directory holds a run of another kind, which is not to be overwritten.
    """
    parts = Parts(directory / "checkpoints", run_hash(run))
    found, stored = broadcast_object(_stored(directory) if rank() == 0 else (False, None))
    if found:
        changed = differences(stored, run) if stored is not None else "calibration.json is missing or damaged"
        if changed and not overwrite:
            raise IsvitError(
                f"{directory} holds another run ({changed}), expected one that is the same or none: undo the changes, "
                "choose another trainer.default_root_dir, or give --overwrite true, which sets its files aside."
            )
        finished = broadcast_object(not parts.directory.exists() and (directory / "quantized.safetensors").exists())
        if resume and not changed:
            return Resumption(parts, resumes=True, finished=finished)
        if rank() == 0:
            folder = set_aside(directory)
            command = f"isvit fit --config {folder / 'config.yaml'} --trainer.default_root_dir {folder} --resume true"
            way = "" if finished else f"; {command} goes on with it"
            state = "finished" if finished else "unfinished"
            _LOG.info("the %s run in %s is now in %s%s", state, directory, folder, way)
    if rank() == 0:
        # The folder comes before calibration.json: a run without it counts as finished.
        parts.clear()
        parts.directory.mkdir(parents=True, exist_ok=True)
    return Resumption(parts, resumes=False, finished=False)


def _stored(directory: Path) -> tuple[bool, dict[str, Any] | None]:
    """Whether a directory holds anything that a run has done, and that run's fingerprint; None where nothing tells."""
    done = any((directory / name).exists() for name in ("quantized.safetensors", "results.json"))
    found = done or any((directory / "checkpoints").glob("*.safetensors"))
    try:
        return found, dict(json.loads((directory / "calibration.json").read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return found, None
