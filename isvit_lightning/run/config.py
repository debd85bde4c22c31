"""The configuration that a finished run was calibrated with, against the one that is given."""

from pathlib import Path
from typing import Any

import yaml

from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe.reading import recipe_of


def require_same_model(directory: Path, config: str) -> None:
    """Refuse options that contradict the run: its file holds what it was calibrated with, not what they say.

    Keys that are missing, because an earlier version wrote the configuration, have their defaults.

    Args:
        directory: run directory; without a ``config.yaml`` there is nothing to compare.
        config: the given configuration as YAML.

    Raises:
        IsvitError: network, bits or recipe differ.
    """
    path = directory / "config.yaml"
    if not path.exists():
        return
    stored, given = yaml.safe_load(path.read_text())["model"], yaml.safe_load(config)["model"]
    different = [
        f"model.{key}" for key in ("network", "bits") if key in stored and not _agree(stored[key], given.get(key))
    ]
    if "recipe" in stored and recipe_of({"model": stored}) != recipe_of({"model": given}):
        different.append("model.recipe")
    if different:
        raise IsvitError(
            f"{directory} was calibrated with another {' and '.join(different)}, expected the same: leave "
            f"{'it' if len(different) == 1 else 'them'} out, or calibrate again with isvit fit."
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
        raise IsvitError(
            f"{checkpoint} holds no finished run; expected a run directory with quantized.safetensors, or that file: "
            "check --ckpt_path."
        )
    return directory
