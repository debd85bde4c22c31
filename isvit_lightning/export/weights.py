"""Quantized weights as tensors of a file, named as by compressed-tensors where that knows the layer and its grid."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.export.packing import pack, unpack, words_of
from isvit_lightning.layers import QuantLinear
from isvit_lightning.networks import quantizers
from isvit_lightning.quantizers import PerChannel, PerTensor, Quantizer, Spec

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Weight:
    """A layer with a quantized weight.

    Args:
        layer: its path.
        path: that of its quantizer.
        module: the layer.
        quantizer: the quantizer of its weight.
    """

    layer: str
    path: str
    module: nn.Module
    quantizer: Quantizer

    @property
    def bits(self) -> int:
        """Bits that hold every code."""
        return (self.quantizer.n_codes - 1).bit_length()

    @property
    def can_be_shared(self) -> bool:
        """Whether compressed-tensors has names for such a layer and such a quantizer."""
        return isinstance(self.module, QuantLinear) and is_known_elsewhere(self.quantizer.spec)

    @property
    def is_shared(self) -> bool:
        """The same, and whether the zero points are among the codes, as it wants them."""
        if not self.can_be_shared:
            return False
        zero_point = self.quantizer.get_buffer("zero_point")
        return bool((zero_point == zero_point.round()).all() and (zero_point >= 0).all()) and bool(
            (zero_point < self.quantizer.n_codes).all()
        )


def is_known_elsewhere(spec: Spec) -> bool:
    """Whether ``spec`` is a scale and a zero point for a whole weight or for each output of a linear layer."""
    granularity = spec.granularity
    return (
        spec.format.numbers == ("scale", "zero_point")
        and spec.n_codes == 2**spec.bits
        and (isinstance(granularity, PerTensor) or (isinstance(granularity, PerChannel) and granularity.axis == -2))
    )


def weights_of(model: nn.Module) -> list[Weight]:
    """All layers of ``model`` with a quantized weight."""
    found = []
    for path, quantizer in quantizers(model).items():
        if quantizer.role.weight:
            layer = path.rpartition(".")[0]
            found.append(Weight(layer, path, model.get_submodule(layer), quantizer))
    return found


def pack_state(model: nn.Module) -> Tensors:
    """State of ``model`` with codes in place of each quantized weight ``X.weight``.

    Where compressed-tensors knows the layer and its grid, ``X.weight_packed``, ``X.weight_scale``,
    ``X.weight_zero_point`` and ``X.weight_shape`` take its place and that of the numbers of the grid; elsewhere
    ``X.weight_codes`` and ``X.weight_shape``, beside the numbers.
    """
    state = dict(model.state_dict())
    for weight in weights_of(model):
        layer, shared = weight.layer, weight.is_shared
        values = state.pop(f"{layer}.weight")
        words = pack(weight.quantizer.encode(values).flatten(1), weight.bits)
        state[f"{layer}.weight_packed" if shared else f"{layer}.weight_codes"] = words
        state[f"{layer}.weight_shape"] = torch.tensor(values.shape)
        if shared:
            scale, zero_point = state.pop(f"{weight.path}.scale"), state.pop(f"{weight.path}.zero_point")
            state[f"{layer}.weight_scale"] = (scale.reshape(1) if scale.dim() == 0 else scale).float()
            state[f"{layer}.weight_zero_point"] = _packed_zero_point(zero_point, weight.bits)
    return state


def _packed_zero_point(zero_point: torch.Tensor, bits: int) -> torch.Tensor:
    """Zero points ``(outputs, 1)`` packed along the outputs; a single one as a signed number."""
    if zero_point.dim() == 0:
        return (zero_point.reshape(1) - 2 ** (bits - 1)).to(torch.int8)
    return pack(zero_point.T.to(torch.int64), bits).T


def fill(model: nn.Module, tensors: Tensors, path: Path) -> None:
    """Load the tensors of :func:`pack_state`: grids first, then the weights, decoded on them.

    Args:
        model: network with the quantizers of the file.
        tensors: of the file; they are taken out.
        path: the file, for messages.

    Raises:
        IsvitError: they are those of another network, or a code is out of range.
    """
    weights = weights_of(model)
    try:
        packed = {weight.layer: _taken(weight, tensors, path) for weight in weights}
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        wanted = {f"{weight.layer}.weight" for weight in weights}
        strangers = sorted(set(missing) - wanted) + list(unexpected)
        if strangers:
            raise _other_network(path, strangers[0])
        for weight in weights:
            _decode(weight, *packed[weight.layer], path)
    except RuntimeError as error:
        detail = " ".join(str(error).split("\n")[1:2]).strip() or first_line(error)
        raise _other_network(path, detail) from error


def _taken(weight: Weight, tensors: Tensors, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Words and shape of a weight, out of ``tensors``; there the numbers of its grid get the quantizer's names."""
    layer, words = weight.layer, tensors.pop(f"{weight.layer}.weight_codes", None)
    if words is None and weight.can_be_shared and f"{layer}.weight_packed" in tensors:
        scale, zero_point = (tensors.pop(f"{layer}.weight_{name}", None) for name in ("scale", "zero_point"))
        shape = weight.quantizer.granularity.shape
        if scale is None or zero_point is None or f"{weight.path}.scale" in tensors:
            raise _other_network(path, f"{layer}.weight_scale")
        if scale.shape != (shape or (1,)) or scale.dtype != torch.float32:
            raise _other_network(path, f"{layer}.weight_scale")
        tensors[f"{weight.path}.scale"] = scale.view(shape)
        tensors[f"{weight.path}.zero_point"] = _unpacked_zero_point(weight, zero_point, path)
        words = tensors.pop(f"{layer}.weight_packed")
    shape_stored = tensors.pop(f"{layer}.weight_shape", None)
    if words is None or shape_stored is None:
        raise _other_network(path, f"{layer}.weight")
    return words, shape_stored


def _unpacked_zero_point(weight: Weight, stored: torch.Tensor, path: Path) -> torch.Tensor:
    """The inverse of :func:`_packed_zero_point`."""
    shape, bits = weight.quantizer.granularity.shape, weight.bits
    kind, expected = (torch.int32, (words_of(shape[0], bits), 1)) if shape else (torch.int8, (1,))
    if stored.dtype != kind or stored.shape != expected:
        raise _other_network(path, f"{weight.layer}.weight_zero_point")
    if shape:
        return unpack(stored.T, bits, shape[0]).T.float()
    zero_point = stored.float() + 2 ** (bits - 1)
    if not 0 <= float(zero_point) < 2**bits:
        raise IsvitError(
            f"{path} holds the zero point {int(stored)} for {weight.layer}, expected one of {-(2 ** (bits - 1))} to "
            f"{2 ** (bits - 1) - 1} at {bits} bits: the file is damaged; fetch or make it again."
        )
    return zero_point.view(shape)


def _decode(weight: Weight, words: torch.Tensor, shape: torch.Tensor, path: Path) -> None:
    """Fill the weight of a layer whose grid is loaded."""
    parameter, quantizer = weight.module.get_parameter("weight"), weight.quantizer
    columns = parameter[0].numel()
    fits = words.dtype == torch.int32 and words.shape == (len(parameter), words_of(columns, weight.bits))
    if shape.tolist() != list(parameter.shape) or not fits:
        raise _other_network(path, f"{weight.layer}.weight")
    codes = unpack(words, weight.bits, columns)
    if int(codes.max()) >= quantizer.n_codes:
        raise IsvitError(
            f"{path} holds the code {int(codes.max())} for {weight.layer}, expected codes of 0 to "
            f"{quantizer.n_codes - 1}: the file is damaged; fetch or make it again."
        )
    parameter.copy_(quantizer.decode(codes.view(parameter.shape)))


def _other_network(path: Path, detail: str) -> IsvitError:
    return IsvitError(
        f"{path} belongs to another network (first difference: {detail}); expected the one it was calibrated from: "
        "check --ckpt_path and model.network."
    )
