"""Products of integers by the engines that PyTorch brings: oneDNN on x86, matrix products of int8 elsewhere."""

import platform

import torch
from torch.library import Library, impl, register_fake

WORTH_A_CALL = 2**19
"""Multiplications of a matrix product below which calling an engine for it takes longer than a batch of floats."""
_X86 = ("x86_64", "amd64")
_LEAST_ROWS, _MULTIPLE = 17, 8
"""What CUDA wants of a product of int8: more than 16 rows, other sizes in multiples of 8."""

_OPERATORS = Library("isvit_lightning", "DEF")  # opaque to a compiler, which would take them apart otherwise
_OPERATORS.define("linear(Tensor codes, Tensor weight, Tensor scale, int zero_point, Tensor? bias) -> Tensor")
_OPERATORS.define(
    "conv2d(Tensor codes, Tensor weight, Tensor scale, int zero_point, Tensor? bias, int[] stride, int[] padding, "
    "int[] dilation, int groups) -> Tensor"
)
_OPERATORS.define("bmm(Tensor a, Tensor b) -> Tensor")


def has_onednn() -> bool:
    """Whether oneDNN multiplies uint8 with int8 here."""
    x86 = platform.machine().lower() in _X86
    return x86 and torch.backends.mkldnn.is_available() and "onednn" in torch.backends.quantized.supported_engines


def has_wide_sums() -> bool:
    """Whether integers of all 8 bits can be summed: without VNNI, two products of them overflow 16 bits on x86."""
    if platform.machine().lower() not in _X86:
        return True
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


@impl(_OPERATORS, "linear", "CompositeExplicitAutograd")
def linear(
    codes: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, zero_point: int, bias: torch.Tensor | None
) -> torch.Tensor:
    """``scale · Σ (codes - zero_point) · weight + bias`` by oneDNN.

    Args:
        codes: uint8 ``(…, in_features)``.
        weight: int8 that oneDNN packed.
        scale: ``(out_features,)``.
        zero_point: of the codes.
        bias: ``(out_features,)``.

    Returns:
        ``(…, out_features)`` in float32.
    """
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, zero_point, weight, scale, zeros, bias, 1.0, 0, torch.float32, "none", [], ""
    )
    return result


def _linear_shape(
    codes: torch.Tensor, _weight: torch.Tensor, scale: torch.Tensor, _zero_point: int, _bias: torch.Tensor | None
) -> torch.Tensor:
    return codes.new_empty((*codes.shape[:-1], len(scale)), dtype=torch.float32)


@impl(_OPERATORS, "conv2d", "CompositeExplicitAutograd")
def conv2d(
    codes: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: int,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """The same of a convolution, whose padding is the code of zero.

    Args:
        codes: uint8 ``(batch, in_channels, height, width)``.
        weight: int8 that oneDNN packed.
        scale: ``(out_channels,)``.
        zero_point: of the codes.
        bias: ``(out_channels,)``.
        stride: of the kernel.
        padding: of the input.
        dilation: of the kernel.
        groups: of channels.

    Returns:
        ``(batch, out_channels, height', width')`` in float32.
    """
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    geometry = (stride, padding, dilation, groups)
    result: torch.Tensor = torch.ops.onednn.qconv_pointwise(
        codes, 1.0, zero_point, weight, scale, zeros, bias, *geometry, 1.0, 0, torch.float32, "none", [], ""
    )
    return result.contiguous()


def _conv2d_shape(
    codes: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    _zero_point: int,
    _bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    _groups: int,
) -> torch.Tensor:
    sizes = zip(codes.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    lengths = [(size + 2 * pad - spread * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, spread in sizes]
    return codes.new_empty((codes.shape[0], len(scale), *lengths), dtype=torch.float32)


def int_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Product of int8 ``a (n, k)`` and ``b (k, m)`` in int32, on any device that has one of int8."""
    rows, columns = len(a), b.shape[1]
    if a.is_cuda:
        a = _padded(a, max(0, _LEAST_ROWS - rows), -a.shape[1] % _MULTIPLE)
        b = _padded(b, -b.shape[0] % _MULTIPLE, -columns % _MULTIPLE)
    return torch._int_mm(a, b)[:rows, :columns]


def _padded(matrix: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return torch.nn.functional.pad(matrix, (0, columns, 0, rows)) if rows or columns else matrix


def is_small(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether one product of floats for all of ``a (…, n, k)`` and ``b (…, k, m)`` beats a call for each."""
    return a.shape[-2] * a.shape[-1] * b.shape[-1] < WORTH_A_CALL and not a.is_cuda


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Products of int8 ``a (…, n, k)`` and ``b (…, k, m)``: whole numbers, in the type that comes cheapest."""
    lead, n, m = a.shape[:-2], a.shape[-2], b.shape[-1]
    if is_small(a, b):
        # Sums of less than 2**24 are exact in float32.
        return torch.matmul(a.float(), b.float())
    products: torch.Tensor = torch.ops.isvit_lightning.bmm(a.flatten(0, -3), b.flatten(0, -3))
    return products.view(*lead, n, m)


@impl(_OPERATORS, "bmm", "CPU")
def _bmm_cpu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = a.new_empty((len(a), a.shape[1], b.shape[2]), dtype=torch.int32)
    for left, right, product in zip(a.unbind(0), b.unbind(0), out.unbind(0), strict=True):
        torch._int_mm(left, right, out=product)
    return out


@impl(_OPERATORS, "bmm", "CUDA")
def _bmm_cuda(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # Integers of 8 bits are exact in float16, their sums in float32.
    return torch.bmm(a.half(), b.half(), out_dtype=torch.float32).to(torch.int32)


def _bmm_shape(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.new_empty((a.shape[0], a.shape[1], b.shape[2]), dtype=torch.int32)


for _name, _shape in (("linear", _linear_shape), ("conv2d", _conv2d_shape), ("bmm", _bmm_shape)):
    register_fake(f"{_OPERATORS.ns}::{_name}", _shape, lib=_OPERATORS)
