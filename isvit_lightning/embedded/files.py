"""Reading the tensors that ship with the package."""

from importlib.resources import files

import torch
from safetensors.torch import load

from isvit_lightning.errors import IsvitError


def read_embedded(name: str) -> dict[str, torch.Tensor]:
    """Tensors of a shipped safetensors file, by name.

    Args:
        name: name of the file, for example ``digits.safetensors``.

    Raises:
        IsvitError: the installation lacks the file.
    """
    # Bytes rather than a path: the package may be imported from a zip archive.
    try:
        content = files(__package__).joinpath(name).read_bytes()
    except FileNotFoundError:
        raise IsvitError(
            f"{name} is missing from the installed package, expected it in isvit_lightning/embedded: reinstall "
            "isvit_lightning, or write it with `python -m tools.train_classifiers`."
        ) from None
    return load(content)
