"""Room for a run in a directory that holds another one, of which nothing is lost."""

import itertools
import os
from pathlib import Path

from isvit_lightning.errors import IsvitError

_FILES = (
    "quantized.safetensors",
    "results.json",
    "checkpoints",
    "logs",
    "traceback.txt",
    "predictions",
    "predictions.csv",
    "benchmark.json",
    "benchmark.md",
    "export",
    "config.yaml",
    "calibration.json",
)
"""What a run writes. The network is moved first, so that nobody takes it for the next one's, and last what tells whose
the files are, so that a process that is killed on the way leaves none that nobody can tell."""


def set_aside(directory: Path) -> Path:
    """Move the files of a run into a folder ``previous-1`` below, or the next number that is free.

    Args:
        directory: run directory. Files that no run writes stay where they are.

    Returns:
        The folder, a run directory like any other.

    Raises:
        IsvitError: a file cannot be moved.
    """
    numbered = (directory / f"previous-{number}" for number in itertools.count(1))
    folder = next(path for path in numbered if not os.path.lexists(path))
    try:
        folder.mkdir()
        for name in _FILES:
            if os.path.lexists(directory / name):
                (directory / name).rename(folder / name)
    except OSError as error:
        raise IsvitError(
            f"The run in {directory} cannot be set aside in {folder} ({error.strerror}), expected files that can be "
            "moved: move them, or choose another trainer.default_root_dir."
        ) from None
    return folder
