"""The packed network of a finished run, as a file of its own or as a folder of a hub."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork, load
from isvit_lightning.export.hub import RUN, locate
from isvit_lightning.export.sealed import read_hash

_LOG = logging.getLogger(__name__)
Load = Callable[[Path], QuantizedNetwork]


def export_packed(run: Path, folder: Path, load: Load = load) -> Path:
    """Write the network of a run as one file of packed codes, and read it back.

    Args:
        run: directory of a finished run.
        folder: where ``quantized.safetensors`` is written.
        load: how a network of its kind is loaded from a path.

    Returns:
        The file, which :func:`isvit_lightning.load` opens.

    Raises:
        IsvitError: the run is not finished or damaged, or the file cannot be written.
    """
    network = load(locate(run))
    path = folder / RUN
    network.save(path)
    _require_equal(network, load(path), path)
    _LOG.info("wrote %s (%.2f MB), %s", path, path.stat().st_size / 1e6, read_hash(path))
    return path


def export_hub(run: Path, folder: Path, load: Load = load) -> Path:
    """Write the network of a run as a folder of a hub, and read it back.

    Args:
        run: directory of a finished run; its ``results.json`` makes the model card.
        folder: where ``config.json``, ``model.safetensors``, ``README.md`` and ``results.json`` are written.
        load: how a network of its kind is loaded from a path.

    Returns:
        The folder, which :func:`isvit_lightning.load` opens, and ``push_to_hub`` of what it gives uploads.

    Raises:
        IsvitError: the run is not finished or damaged, or the folder cannot be written or is that of the run.
    """
    if (folder / RUN).exists():
        raise IsvitError(
            f"{folder} is a run directory, expected a folder for the files of a hub, which have names of their own: "
            "name another one."
        )
    network = load(locate(run))
    network.save_pretrained(folder)
    _require_equal(network, load(folder), folder)
    _LOG.info("wrote %s", folder)
    return folder


def _require_equal(network: QuantizedNetwork, again: QuantizedNetwork, path: Path) -> None:
    """Refuse what was written if it does not read back to the last bit: a disk or memory that loses bits.

    Raises:
        IsvitError: a tensor or the description differs.
    """
    state, other = network.state_dict(), again.state_dict()
    equal = state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
    if not equal or network.specs != again.specs:
        raise IsvitError(
            f"{path} does not read back as it was written, expected equal bits: try again, on another disk."
        )
