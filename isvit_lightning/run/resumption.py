"""Whether a run directory holds an interrupted run of the same kind, and what of it is used."""

import dataclasses
import json
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
from isvit_lightning.storage.parts import Parts, differences, run_hash
from isvit_lightning.system.processes import broadcast_object, rank


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
    installed, schedule = versions(), model.schedule
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
        "versions": {name: installed[name] for name in ("isvit-lightning", "torch")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def begin(directory: Path, run: Mapping[str, Any], resume: bool) -> Resumption:
    """Look at the run directory, and empty it of an earlier run that is not resumed. All processes must call it.

    Args:
        directory: run directory.
        run: fingerprint of the run.
        resume: go on with an interrupted run if there is one.

    Raises:
        IsvitError: the directory holds a run of another kind, and is to be resumed.
    """
    parts = Parts(directory / "checkpoints", run_hash(run))
    stored = broadcast_object(_stored(directory) if resume and rank() == 0 else None)
    if stored is not None:
        changed = differences(stored, run)
        if changed:
            raise IsvitError(
                f"{directory} holds another run ({'; '.join(changed)}), expected the same one to resume: undo the "
                "changes, choose another trainer.default_root_dir, or leave out --resume to start afresh."
            )
        finished = not parts.directory.exists() and (directory / "quantized.safetensors").exists()
        return Resumption(parts, resumes=True, finished=broadcast_object(finished))
    if rank() == 0:
        # The folder comes before calibration.json: a run without it counts as finished.
        parts.clear()
        (directory / "results.json").unlink(missing_ok=True)
        parts.directory.mkdir(parents=True, exist_ok=True)
    return Resumption(parts, resumes=False, finished=False)


def _stored(directory: Path) -> dict[str, Any] | None:
    """Fingerprint of the run in ``directory``; None where there is none."""
    try:
        run = json.loads((directory / "calibration.json").read_text())["run"]
    except (OSError, ValueError, KeyError):
        return None
    return dict(run)
