"""Weights in a file: how it is read."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor

from isvit_lightning.errors import IsvitError, first_line


def read_state(path: Path, trusted: bool | None = None) -> dict[str, Tensor]:
    """Tensors by name of a checkpoint file.

    Args:
        path: .safetensors file, or a torch file with a state dict, plain or under ``state_dict`` or ``model``.
        trusted: whether a torch file that holds more than tensors is read all the same, which may run code that it
            brings; None is no, where no option says yes.

    Raises:
        IsvitError: the file is missing or damaged, or holds more than tensors and is not trusted.
    """
    if not path.is_file():
        raise IsvitError(
            f"{path} does not exist, expected a .safetensors or torch file: change model.network.checkpoint."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=not trusted)
    except Exception as error:  # noqa: BLE001 - damaged bytes make the readers raise almost anything
        if isinstance(error, UnpicklingError) and trusted is False:
            raise IsvitError(
                f"{path} holds more than tensors or is damaged ({first_line(error)}), expected tensors only: set "
                "model.network.trust_checkpoint to true if you trust its source, as reading it may run code, or change "
                "model.network.checkpoint."
            ) from None
        raise IsvitError(
            f"{path} cannot be read as weights ({first_line(error)}), expected an undamaged .safetensors file or a "
            "torch file of tensors only: change model.network.checkpoint."
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not (isinstance(state, dict) and state and all(map(_names_tensor, state.items()))):
        raise IsvitError(
            f"{path} holds no state dict, expected tensors by name, plain or under state_dict or model: change "
            "model.network.checkpoint."
        )
    return {key.removeprefix("module."): value for key, value in state.items()}


def _names_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)
