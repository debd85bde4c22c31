"""Loading weights into a float network."""

from pathlib import Path

import torch
from torch import Tensor, nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.weights import read_state


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


def _is_plain(value: Tensor) -> bool:
    """Whether ``value`` can be copied into a parameter without loss: dense, in memory, real."""
    dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
    return dense and not value.is_complex()
