"""The finished network as one file: packed codes, grids, and all that is needed to build it again."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.export.packing import pack, unpack
from isvit_lightning.networks import OpenedNetwork, open_quantized, quantizers, require_calibrated, switch
from isvit_lightning.quantizers import Quantizer, Role
from isvit_lightning.recipe.method import Bits, Method, Tuning
from isvit_lightning.sources.architecture import Architecture
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.storage.files import read_tensors, write_tensors

FORMAT = "isvit-packed-1"

_Choices = TypeVar("_Choices", Bits, Method, Tuning, Architecture, Preprocessing)


class QuantizedNetwork(nn.Module):
    """A calibrated network with frozen grids, computed in float on those grids.

    Args:
        model: network as the stages leave it.
        architecture: how to build its float form; None where that is not known.
        preprocessing: how its images are prepared.
        bits: widths.
        method: choices that it was calibrated with.

    Raises:
        IsvitError: a quantizer is not calibrated.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture | None,
        preprocessing: Preprocessing | None,
        bits: Bits,
        method: Method,
    ) -> None:
        super().__init__()
        require_calibrated(model)
        switch(model, weights=True, activations=True)
        self.model = model.eval()
        self.architecture = architecture
        self.preprocessing = preprocessing
        self.bits = bits
        self.method = method
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of ``images (batch, 3, height, width)``."""
        logits: torch.Tensor = self.model(images)
        return logits

    def save(self, path: str | Path) -> None:
        """Write the network: weights as packed codes of ``bits.weight``, everything else in float32.

        Raises:
            IsvitError: the file cannot be written.
        """
        metadata = {
            "format": FORMAT,
            "bits": dataclasses.asdict(self.bits),
            "method": dataclasses.asdict(self.method),
            "architecture": self.architecture and dataclasses.asdict(self.architecture),
            "preprocessing": self.preprocessing and dataclasses.asdict(self.preprocessing),
        }
        write_tensors(Path(path), pack_state(self.model), metadata)


def load(
    path: str | Path,
    network: nn.Module | None = None,
    architecture_type: type[Architecture] = Architecture,
    preprocessing_type: type[Preprocessing] = Preprocessing,
) -> QuantizedNetwork:
    """Load a network that :meth:`QuantizedNetwork.save` wrote.

    Args:
        path: the file, or the run directory that holds it as ``quantized.safetensors``.
        network: a float network of the same architecture; needed only where the file does not name one.
        architecture_type: what builds the network; another one than timm's for detectors.
        preprocessing_type: what prepares its images.

    Returns:
        The network, with logits identical to those of the saved one.

    Raises:
        IsvitError: the file is missing, damaged, of another program, or of another network.
    """
    path = Path(path)
    path = path / "quantized.safetensors" if path.is_dir() else path
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise IsvitError(f"{path} has format {metadata.get('format')}, expected {FORMAT}: check --ckpt_path.")
    try:
        bits = _choices(Bits, metadata["bits"])
        method = _choices(Method, metadata["method"])
        architecture = _optional(architecture_type, metadata["architecture"])
        preprocessing = _optional(preprocessing_type, metadata["preprocessing"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IsvitError(
            f"{path} is damaged (its description lacks or garbles {first_line(error)}), expected a "
            "quantized.safetensors of a finished run: check --ckpt_path."
        ) from error
    if network is None:
        if architecture is None:
            raise IsvitError(f"{path} does not name its architecture; pass the float network as `network`.")
        network = architecture.build()
    opened = open_quantized(network, bits, method, deployed=True)
    _fill(opened, tensors, path)
    return QuantizedNetwork(opened.model, architecture, preprocessing, bits, method)


def pack_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """State of ``model`` with each quantized ``X.weight`` replaced by ``X.weight_packed`` and ``X.weight_shape``."""
    state = dict(model.state_dict())
    for layer, quantizer in _weight_quantizers(model).items():
        weight = state.pop(f"{layer}.weight")
        codes = quantizer.encode(weight).flatten(1)
        state[f"{layer}.weight_packed"] = pack(codes, quantizer.bits)
        state[f"{layer}.weight_shape"] = torch.tensor(weight.shape)
    return state


def _weight_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    return {
        name.rpartition(".")[0]: quantizer
        for name, quantizer in quantizers(model).items()
        if quantizer.role is Role.WEIGHT
    }


def _fill(opened: OpenedNetwork, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Load grids first, then decode the weights on them."""
    model = opened.model
    layers = _weight_quantizers(model)
    packed = {layer: tensors.pop(f"{layer}.weight_packed", None) for layer in layers}
    shapes = {layer: tensors.pop(f"{layer}.weight_shape", None) for layer in layers}
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        wanted = {f"{layer}.weight" for layer in layers}
        strangers = sorted(set(missing) - wanted) + list(unexpected)
        if strangers:
            raise IsvitError(_other_network(path, strangers[0]))
        for layer, quantizer in layers.items():
            words, shape, parameter = packed[layer], shapes[layer], model.get_parameter(f"{layer}.weight")
            if words is None or shape is None or words.dtype != torch.int32:
                raise IsvitError(_other_network(path, f"{layer}.weight"))
            if shape.tolist() != list(parameter.shape):
                raise IsvitError(_other_network(path, f"{layer}.weight"))
            codes = unpack(words, quantizer.bits, parameter[0].numel()).view(parameter.shape)
            parameter.copy_(quantizer.decode(codes))
    except RuntimeError as error:
        raise IsvitError(
            _other_network(path, " ".join(str(error).split("\n")[1:2]).strip() or first_line(error))
        ) from error


def _other_network(path: Path, detail: str) -> str:
    return (
        f"{path} belongs to another network (first difference: {detail}); expected the one it was calibrated from: "
        "check --ckpt_path and model.network."
    )


def _optional(kind: type[_Choices], values: Any) -> _Choices | None:
    """The same as :func:`_choices`, where null stands for nothing known."""
    return None if values is None else _choices(kind, values)


def _choices(kind: type[_Choices], values: Any) -> _Choices:
    """A frozen dataclass from its JSON form; unknown keys are refused."""
    if not isinstance(values, dict):
        raise IsvitError(
            f"The file holds {values!r} in place of {kind.__name__}, expected its values by name: it is damaged, or "
            "was written by another version; calibrate again."
        )
    known = {field.name for field in dataclasses.fields(kind)}
    if set(values) - known:
        raise IsvitError(
            f"The file holds the unknown key {min(set(values) - known)!r} for {kind.__name__}, expected "
            f"{sorted(known)}: it was written by another version; install that one or calibrate again."
        )
    converted: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    for stage in {"stage1", "stage3"} & set(converted):
        converted[stage] = _choices(Tuning, converted[stage])
    return kind(**converted)
