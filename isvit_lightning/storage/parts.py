"""What a run has finished so far, on disk, so that an interrupted one goes on where it stopped."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.storage.files import read_metadata, read_tensors, write_tensors
from isvit_lightning.system.hashing import hash_of
from isvit_lightning.system.processes import broadcast_object, rank

_LOG = logging.getLogger(__name__)
_TOLD = 5
"""Differences that a sentence tells."""


@dataclass(frozen=True)
class Part:
    """What a file holds of a finished part.

    Args:
        tensors: its state.
        description: what else was kept with it, plain values.
    """

    tensors: dict[str, torch.Tensor]
    description: dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """One file for each finished part of a run.

    A step that tunes has the parts ``NAME-start`` (the ranges that it begins with) and ``NAME-007`` (the unit with
    index 7); any other step has the part ``NAME`` (the network behind it). A file is complete or not there, and its
    contents are hashed. Activations are not kept: they are computed again from the finished units.

    Args:
        directory: where the files lie.
        run: hash of everything that decides the result; files of another run are not read.
    """

    directory: Path
    run: str

    def write(
        self,
        part: str,
        tensors: Mapping[str, torch.Tensor],
        seconds: float = 0.0,
        rolled_back: str | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep a finished part.

        Args:
            part: its name.
            tensors: its state.
            seconds: time it took.
            rolled_back: name of the unit where it was given its best state back; None where it was not.
            description: plain values to keep with it.

        Raises:
            IsvitError: the disk is full or the folder cannot be written.
        """
        metadata = {
            "part": part,
            "run": self.run,
            "seconds": seconds,
            "rolled_back": rolled_back,
            "sha256": hash_of(tensors),
            "description": dict(description or {}),
        }
        write_tensors(self._path(part), {name: tensor.detach() for name, tensor in tensors.items()}, metadata)

    def read(self, part: str) -> Part | None:
        """A finished part, the same in every process; None where it must be done again.

        All processes must call it; only the first one reads.
        """
        return broadcast_object(self._read(part) if rank() == 0 else None)

    def rolled_back(self) -> dict[str, list[str]]:
        """Names of the units that were given their best state back, in order, by step.

        Read from the files, which tell of the units of all processes and of earlier, interrupted runs alike.
        """
        units: dict[str, list[str]] = {}
        for step, metadata in self._finished():
            if metadata.get("rolled_back"):
                units.setdefault(step, []).append(metadata["rolled_back"])
        return units

    def seconds(self) -> dict[str, float]:
        """Time that the finished parts of each step took."""
        spent: dict[str, float] = {}
        for step, metadata in self._finished():
            spent[step] = spent.get(step, 0.0) + float(metadata["seconds"])
        return spent

    def _finished(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Step and metadata of each finished part of this run, by name.

        Only headers are read: a file with damaged tensors counts until what it held is done again and written over it.
        """
        for path in sorted(self.directory.glob("*.safetensors")):
            metadata = read_metadata(path)
            if metadata.get("run") == self.run and metadata.get("part") == path.stem:
                yield _step_of(path.stem), metadata

    def clear(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _read(self, part: str) -> Part | None:
        path = self._path(part)
        if not path.exists():
            return None
        try:
            tensors, metadata = read_tensors(path)
        except IsvitError:
            tensors, metadata = {}, {}
        if metadata.get("part") != part or metadata.get("sha256") != hash_of(tensors):
            _LOG.warning("%s is damaged; what it held is done again", path)
            return None
        return Part(tensors, metadata["description"]) if metadata.get("run") == self.run else None

    def _path(self, part: str) -> Path:
        return self.directory / f"{part}.safetensors"


def run_hash(fingerprint: Mapping[str, Any]) -> str:
    """Hash of everything that decides the result of a run."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """What two runs differ in, as ``key: old → new; …`` sorted by key, the first few; empty where they do not."""
    old, new = _flat(stored), _flat(given)
    found = [
        f"{key}: {old.get(key, 'none')} → {new.get(key, 'none')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    more = [f"{len(found) - _TOLD} more"] if len(found) > _TOLD else []
    return "; ".join([*found[:_TOLD], *more])


def _flat(nested: Any, prefix: str = "") -> dict[str, str]:
    """Leaves of a nested mapping by dotted key, as JSON text; items of a list of mappings by their name or place.

    The names of such a list are a leaf of their own, because their order counts.
    """
    flat: dict[str, str] = {}
    if isinstance(nested, list | tuple) and any(isinstance(value, Mapping) for value in nested):
        nested = {
            str(value.get("name", index)) if isinstance(value, Mapping) else str(index): value
            for index, value in enumerate(nested)
        }
        flat[prefix] = json.dumps(list(nested))
    if not isinstance(nested, Mapping):
        return {prefix: json.dumps(nested)}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _step_of(part: str) -> str:
    """Name of the step that a part is of."""
    name, _, rest = part.rpartition("-")
    return name if name and (rest == "start" or rest.isdigit()) else part
