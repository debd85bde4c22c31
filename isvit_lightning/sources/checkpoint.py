"""Loading weights into a float network."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from isvit_lightning.errors import IsvitError, first_line


def load_checkpoint(model: nn.Module, path: Path, name: str) -> None:
    """Load the weights in ``path`` into ``model``, all of them and nothing else.

    Args:
        model: network; floating tensors of other types are converted to its own.
        path: .safetensors file, or a torch file with a state dict, plain or under ``state_dict`` or ``model``.
        name: what the network is called in messages.

    Raises:
        IsvitError: the file is missing, damaged or belongs to another network.
    """
    state = read_state(path)
    # Older checkpoints hold buffers that timm computes by itself today, such as Swin's relative position index.
    computed = {key for key, _ in model.named_buffers()} - model.state_dict().keys()
    state = {key: value for key, value in state.items() if key not in computed}
    load_state(model, state, path, name, "model.network.checkpoint, model.network.name or model.network.args")


def load_state(model: nn.Module, state: dict[str, Tensor], path: Path, name: str, options: str) -> None:
    """Load ``state`` into ``model``, all of it and nothing else.

    Args:
        model: network; floating tensors of other types are converted to its own.
        state: tensors by name.
        path: where they come from.
        name: what the network is called in messages.
        options: what can be changed where they belong to another network.

    Raises:
        IsvitError: a tensor is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    faults = [f"{key} is missing" for key in own if key not in state]
    faults += [f"{key} is unexpected" for key in state if key not in own]
    faults += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    faults += [f"{key} is no dense tensor of real numbers" for key, value in state.items() if not _is_plain(value)]
    if faults:
        raise IsvitError(
            f"{path} is no checkpoint of {name} with these arguments: {faults[0]}, first of {len(faults)} differences, "
            f"expected the same tensors: change {options}."
        )
    model.load_state_dict(state)


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


def _is_plain(value: Tensor) -> bool:
    """Whether ``value`` can be copied into a parameter without loss: dense, in memory, real."""
    dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
    return dense and not value.is_complex()


def _names_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)
