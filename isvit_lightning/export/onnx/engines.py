"""Packages of the extra ``export``, imported when they are used."""

import importlib
from typing import Any

from isvit_lightning.errors import IsvitError


def require(package: str) -> Any:
    """The package.

    Raises:
        IsvitError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise IsvitError(
            f'{package} is not installed, expected it for this format: run pip install "isvit-lightning[export]".'
        ) from error
