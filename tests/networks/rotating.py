"""Rotations of float networks: exact wherever an adapter tells of every layer that they pass."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from isvit_lightning.networks import Heads, Stream, Wire


def rotation(size: int, fixed: torch.Tensor | None = None) -> torch.Tensor:
    """A random orthogonal matrix; ``fixed (size,)`` is not moved by it."""
    if fixed is None:
        return torch.linalg.qr(torch.randn(size, size)).Q
    basis = torch.linalg.qr(torch.cat([fixed.unsqueeze(1), torch.randn(size, size - 1)], dim=1)).Q
    inner = torch.eye(size)
    inner[1:, 1:] = rotation(size - 1)
    return basis @ inner @ basis.T


@torch.no_grad()
def rotate_heads(heads: Iterable[Heads]) -> None:
    """Rotate whatever can be rotated of each attention, each head by a matrix of its own."""
    for attention in heads:
        qkv: Any = attention.qkv
        proj: Any = attention.proj
        size = proj.in_features // attention.count
        for head in range(attention.count):
            scores, values = rotation(size), rotation(size)
            for part, turn in enumerate((scores, scores, values)):
                if not (attention.rotates_values if part == 2 else attention.rotates_scores):
                    continue
                start = (part * attention.count + head) * size
                qkv.weight[start : start + size] = turn @ qkv.weight[start : start + size]
                if qkv.bias is not None:
                    qkv.bias[start : start + size] = turn @ qkv.bias[start : start + size]
            if attention.rotates_values:
                columns = slice(head * size, (head + 1) * size)
                proj.weight[:, columns] = proj.weight[:, columns] @ values.T


@torch.no_grad()
def absorb_norm(wire: Wire) -> None:
    """Move factors and shifts of a norm into the layers that read it."""
    for reader in wire.readers:
        layer: Any = reader
        layer.bias = nn.Parameter(layer.weight @ wire.norm.bias + (0 if layer.bias is None else layer.bias))
        layer.weight.mul_(wire.norm.weight)
    wire.norm.weight.fill_(1)
    wire.norm.bias.zero_()


@torch.no_grad()
def rotate_stream(stream: Stream) -> None:
    """Rotate a residual stream by a matrix that leaves means, which norms subtract, where they are."""
    turn = rotation(stream.channels, torch.ones(stream.channels))
    for writer in stream.writers:
        layer: Any = writer.layer
        if writer.scale is not None:
            layer.weight.mul_(writer.scale.view(-1, *(1 for _ in layer.weight.shape[1:])))
            layer.bias.mul_(writer.scale)
            writer.scale.fill_(1)
        layer.weight.copy_(torch.tensordot(turn, layer.weight, dims=1))
        if layer.bias is not None:
            layer.bias.copy_(turn @ layer.bias)
    for offset in stream.offsets:
        offset.copy_(offset @ turn.T)
    for wire in stream.wires:
        absorb_norm(wire)
        for reader in wire.readers:
            reading: Any = reader
            reading.weight.copy_(reading.weight @ turn.T)
