"""ONNX operators that PyTorch has no name for, as calls that ``torch.onnx.export`` writes out as they are."""

from collections.abc import Sequence

import torch

_CAST_TYPES = {torch.int32: 6}
"""Numbers of the types in ONNX (TensorProto.DataType)."""


def clip(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """``min(max(x, low), high)`` with scalar bounds of the type of ``x``."""
    return _symbolic("Clip", (x, low, high), x.dtype, x.shape)


def quantize(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """``saturate(round(x / scale) + zero_point)`` in the type of the zero point; ties go to even numbers."""
    return _symbolic("QuantizeLinear", (x, scale, zero_point), zero_point.dtype, x.shape)


def dequantize(
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    axis: int | None = None,
    block: int = 0,
) -> torch.Tensor:
    """``(codes - zero_point) · scale`` in float32.

    Args:
        codes: integers.
        scale: one, or one for each place along ``axis``.
        zero_point: same shape and the type of the codes; None for zeros.
        axis: of the scales.
        block: places along ``axis`` that share a scale; 0 where each has its own.
    """
    inputs = (codes, scale) if zero_point is None else (codes, scale, zero_point)
    attributes = {} if axis is None else {"axis": axis}
    attributes |= {"block_size": block} if block else {}
    return _symbolic("DequantizeLinear", inputs, torch.float32, codes.shape, attributes)


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a (…, n, k) @ b (…, k, m)`` as one node; ``b`` may be a matrix."""
    return _symbolic("MatMul", (a, b), torch.float32, (*a.shape[:-1], b.shape[-1]))


def to_integers(x: torch.Tensor) -> torch.Tensor:
    """``x`` without its fraction in int32."""
    return _symbolic("Cast", (x,), torch.int32, x.shape, {"to": _CAST_TYPES[torch.int32]})


def look_up(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """``table[places]`` for a table of one dimension and places of any shape.

    ONNX Runtime's GatherElements on rows is three times as fast as its Gather.
    """
    flat = places.reshape(-1)
    return _symbolic("GatherElements", (table, flat), table.dtype, flat.shape, {"axis": 0}).reshape(places.shape)


def _symbolic(
    name: str,
    inputs: Sequence[torch.Tensor],
    dtype: torch.dtype,
    shape: Sequence[int | torch.SymInt],
    attributes: dict[str, int] | None = None,
) -> torch.Tensor:
    # A copy in the type that the signature names.
    return torch.onnx.ops.symbolic(name, inputs, {**(attributes or {})}, dtype=dtype, shape=list(shape))
