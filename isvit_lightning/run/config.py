"""Where a finished run lies, and whether the network of its configuration is the one that is given."""

from pathlib import Path
from typing import Any

import yaml

from isvit_lightning.errors import IsvitError


def require_same_network(directory: Path, config: str) -> None:
    """Refuse options of the float network that contradict those of the run: its file holds the network itself.

    Keys that are missing, because an earlier version wrote the configuration, have their defaults.

    Args:
        directory: run directory; without a ``config.yaml`` there is nothing to compare.
        config: the given configuration as YAML.

    Raises:
        IsvitError: the network differs.
    """
    path = directory / "config.yaml"
    if not path.exists():
        return
    stored, given = yaml.safe_load(path.read_text())["model"], yaml.safe_load(config)["model"]
    if "network" in stored and not _agree(stored["network"], given.get("network")):
        raise IsvitError(
            f"{directory} was calibrated with another model.network, expected the same: leave it out, or calibrate "
            "again with isvit fit."
        )


def _agree(stored: Any, given: Any) -> bool:
    """Whether everything that is stored is given alike; what an earlier version did not store has its default."""
    if isinstance(stored, dict) and isinstance(given, dict):
        return all(key in given and _agree(value, given[key]) for key, value in stored.items())
    if isinstance(stored, list) and isinstance(given, list):
        return len(stored) == len(given) and all(map(_agree, stored, given))
    return bool(stored == given)


def run_directory(checkpoint: str) -> Path:
    """The run directory that ``--ckpt_path`` names, directly or by its ``quantized.safetensors``.

    Raises:
        IsvitError: there is no such run.
    """
    path = Path(checkpoint).expanduser()
    directory = path if path.is_dir() else path.parent
    if not path.exists() or not (directory / "quantized.safetensors").exists():
        unfinished = path.is_dir() and (path / "checkpoints").is_dir()
        raise IsvitError(
            f"{checkpoint} holds no finished run{', but an interrupted one' if unfinished else ''}; expected a run "
            "directory with quantized.safetensors, or that file: check --ckpt_path"
            f"{', or go on with isvit fit and --resume true' if unfinished else ''}."
        )
    return directory
