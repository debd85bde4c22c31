"""Paths as the user writes them."""

import os
from pathlib import Path
from string import Template
from typing import Final

DEFAULT_DATA: Final = "../shared/data"


def expand_path(path: str | Path) -> Path:
    """``path`` with ``~``, ``$NAME`` and ``${NAME}`` replaced.

    ``ISVIT_DATA`` stands for ``../shared/data``, relative to the working directory, where the environment lacks it. Any
    other name that the environment lacks stays as it is.

    Args:
        path: for example ``$ISVIT_DATA/imagenet_calibration.tar``.
    """
    known = {"ISVIT_DATA": DEFAULT_DATA, **os.environ}
    return Path(Template(str(path)).safe_substitute(known)).expanduser()
