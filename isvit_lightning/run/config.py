"""The configuration that a finished run was calibrated with, against the one that is given."""

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from isvit_lightning.errors import IsvitError
from isvit_lightning.run.task import ModelSection


def require_same_model(directory: Path, model: ModelSection, config: str) -> None:
    """Refuse options that contradict the run: its file holds what it was calibrated with, not what they say.

    Keys that are missing, because an earlier version wrote the configuration, have their defaults.

    Args:
        directory: run directory; without a ``config.yaml`` there is nothing to compare.
        model: the model section that is given.
        config: the given configuration as YAML.

    Raises:
        IsvitError: network, bits or method differ.
    """
    path = directory / "config.yaml"
    if not path.exists():
        return
    stored, given = yaml.safe_load(path.read_text())["model"], yaml.safe_load(config)["model"]
    different = [
        f"model.{key}"
        for key, defaults in _defaults(model).items()
        if _completed(stored.get(key), defaults) != _completed(given.get(key), defaults)
    ]
    if different:
        raise IsvitError(
            f"{directory} was calibrated with another {' and '.join(different)}, expected the same: leave "
            f"{'it' if len(different) == 1 else 'them'} out, or calibrate again with isvit fit."
        )


def _defaults(model: ModelSection) -> dict[str, Any]:
    """Values of the keys of each section where a configuration does not give them."""
    sections = {"network": model.source, "bits": model.bits, "method": model.method}
    arguments = inspect.signature(type(model)).parameters
    return {
        # A detector's method has other defaults than the class of all methods.
        key: asdict(type(value)() if arguments[key].default is inspect.Parameter.empty else arguments[key].default)
        for key, value in sections.items()
    }


def _completed(section: Any, defaults: Any) -> Any:
    """``section`` with the keys that it lacks."""
    if not isinstance(section, dict) or not isinstance(defaults, dict):
        return section
    missing = {key: value for key, value in defaults.items() if key not in section}
    return missing | {key: _completed(value, defaults.get(key)) for key, value in section.items()}
