"""The finished network as one file: packed codes, grids, and all that is needed to build it again."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.export.packing import pack, unpack
from isvit_lightning.networks import open_by_specs, quantizers, require_calibrated, specs_of, switch
from isvit_lightning.quantizers import Quantizer, Spec
from isvit_lightning.sources.architecture import Architecture
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.storage.files import read_tensors, write_tensors

FORMAT = "isvit-packed-2"
_EARLIER = "isvit-packed-1"

_Choices = TypeVar("_Choices", Architecture, Preprocessing)


class QuantizedNetwork(nn.Module):
    """A calibrated network with fixed grids, computed in float on those grids.

    Args:
        model: network as the steps leave it.
        architecture: how to build its float form; None where that is not known.
        preprocessing: how its images are prepared.
        record: what it was made with, plain values that are stored with it and not read again.

    Raises:
        IsvitError: a quantizer is not calibrated.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture | None,
        preprocessing: Preprocessing | None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        switch(model, weights=True, activations=True)
        require_calibrated(model)
        self.model = model.eval()
        self.architecture = architecture
        self.preprocessing = preprocessing
        self.record = dict(record or {})
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of ``images (batch, 3, height, width)``."""
        logits: torch.Tensor = self.model(images)
        return logits

    @property
    def specs(self) -> dict[str, Spec]:
        """Format, width, granularity and role of each quantizer by path."""
        return specs_of(self.model)

    def save(self, path: str | Path) -> None:
        """Write the network: weights as packed codes, everything else in float32.

        Raises:
            IsvitError: the file cannot be written.
        """
        metadata = {
            "format": FORMAT,
            "specs": {name: spec.as_dict() for name, spec in self.specs.items()},
            "architecture": self.architecture and dataclasses.asdict(self.architecture),
            "preprocessing": self.preprocessing and dataclasses.asdict(self.preprocessing),
            "record": self.record,
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
        architecture_type: what builds the network; another one than timm's for other kinds of networks.
        preprocessing_type: what prepares its images.

    Returns:
        The network, with logits identical to those of the saved one.

    Raises:
        IsvitError: the file is missing, damaged, of another program or version, or of another network.
    """
    path = Path(path)
    path = path / "quantized.safetensors" if path.is_dir() else path
    tensors, metadata = read_tensors(path)
    _require_format(path, metadata.get("format"))
    try:
        specs = {str(name): Spec.of(values) for name, values in metadata["specs"].items()}
        architecture = _optional(architecture_type, metadata["architecture"])
        preprocessing = _optional(preprocessing_type, metadata["preprocessing"])
        record = dict(metadata["record"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IsvitError(
            f"{path} is damaged (its description lacks or garbles {first_line(error)}), expected a "
            "quantized.safetensors of a finished run: check --ckpt_path."
        ) from error
    if network is None:
        if architecture is None:
            raise IsvitError(f"{path} does not name its architecture; pass the float network as `network`.")
        network = architecture.build()
    try:
        opened = open_by_specs(network, specs, tensors)
    except IsvitError as error:
        raise IsvitError(f"{path}: {error}") from None
    _fill(opened.model, tensors, path)
    return QuantizedNetwork(opened.model, architecture, preprocessing, record)


def _require_format(path: Path, given: object) -> None:
    if given == _EARLIER:
        raise IsvitError(
            f"{path} was written by an earlier version, which stored no description of its quantizers, expected a file "
            "of this one: calibrate again with isvit fit."
        )
    if given != FORMAT:
        raise IsvitError(f"{path} has format {given}, expected {FORMAT}: check --ckpt_path.")


def pack_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """State of ``model`` with each quantized ``X.weight`` replaced by ``X.weight_packed`` and ``X.weight_shape``."""
    state = dict(model.state_dict())
    for layer, quantizer in _weight_quantizers(model).items():
        weight = state.pop(f"{layer}.weight")
        codes = quantizer.encode(weight).flatten(1)
        state[f"{layer}.weight_packed"] = pack(codes, _packed_bits(quantizer))
        state[f"{layer}.weight_shape"] = torch.tensor(weight.shape)
    return state


def _packed_bits(quantizer: Quantizer) -> int:
    """Bits that hold every code."""
    return (quantizer.n_codes - 1).bit_length()


def _weight_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    return {
        name.rpartition(".")[0]: quantizer for name, quantizer in quantizers(model).items() if quantizer.role.weight
    }


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Load grids first, then decode the weights on them."""
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
            words, shape = packed[layer], shapes[layer]
            if words is None or shape is None or words.dtype != torch.int32:
                raise IsvitError(_other_network(path, f"{layer}.weight"))
            parameter, bits = model.get_parameter(f"{layer}.weight"), _packed_bits(quantizer)
            columns = parameter[0].numel()
            if shape.tolist() != list(parameter.shape) or words.shape != (len(parameter), -(-columns // (32 // bits))):
                raise IsvitError(_other_network(path, f"{layer}.weight"))
            codes = unpack(words, bits, columns).view(parameter.shape)
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
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return kind(**given)
