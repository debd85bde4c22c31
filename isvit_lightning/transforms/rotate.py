"""Rotations that the network does not feel, but its quantizers do: of attention heads, and of the residual stream."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import give_affine
from isvit_lightning.networks import Heads, Stream, adapter_for
from isvit_lightning.networks.adapter import HasHeads, HasStream
from isvit_lightning.transforms.transform import Transform


@dataclass(frozen=True)
class RotateHeads(Transform):
    """An orthogonal matrix per head on queries and keys, and another one on values and the columns of the projection.

    Products of queries and keys, and outputs of the projection, stay as they are; outliers of single channels are
    spread over a head.

    Args:
        seed: of the matrices.
    """

    seed: int = 0

    @override
    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """See :meth:`Transform.apply`; where a norm stands in the way of a rotation, that one is left out.

        Raises:
            IsvitError: the adapter of the network does not tell its heads.
        """
        adapter = adapter_for(model)
        if not isinstance(adapter, HasHeads):
            raise IsvitError(
                f"The heads of a {type(model).__name__} cannot be rotated: its adapter does not tell them, expected a "
                "method heads: take RotateHeads out of model.recipe.transforms."
            )
        generator = torch.Generator().manual_seed(self.seed)
        for heads in adapter.heads():
            _rotate_heads(heads, generator)


@dataclass(frozen=True)
class RotateStream(Transform):
    """An orthogonal matrix that keeps the vector of ones on the whole residual stream.

    The affine part of each norm goes into its readers first, and each LayerScale into its writer; a norm without them
    commutes with such a matrix, so that LayerNorm stays LayerNorm.

    Args:
        seed: of the matrix.
    """

    seed: int = 0

    @override
    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """See :meth:`Transform.apply`.

        Raises:
            IsvitError: the adapter of the network does not tell its residual stream.
        """
        adapter = adapter_for(model)
        if not isinstance(adapter, HasStream):
            raise IsvitError(
                f"The residual stream of a {type(model).__name__} cannot be rotated: its adapter does not tell it, "
                "expected a method stream: take RotateStream out of model.recipe.transforms."
            )
        stream = adapter.stream()
        _strip(stream)
        rotation = rotation_keeping_ones(stream.channels, torch.Generator().manual_seed(self.seed))
        for writer in stream.writers:
            layer: Any = writer.layer
            _replace(layer.weight, torch.tensordot(rotation.T, layer.weight.double().cpu(), dims=1))
            if layer.bias is not None:
                _replace(layer.bias, layer.bias.double().cpu() @ rotation)
        for offset in stream.offsets:
            _replace(offset, offset.double().cpu() @ rotation)
        for wire in stream.wires:
            for reader in wire.readers:
                weight: Any = reader.weight
                _replace(weight, weight.double().cpu() @ rotation)


def random_rotation(size: int, generator: torch.Generator) -> torch.Tensor:
    """A random orthogonal matrix ``(size, size)`` in float64."""
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def rotation_keeping_ones(size: int, generator: torch.Generator) -> torch.Tensor:
    """A random orthogonal matrix ``(size, size)`` in float64 that maps the vector of ones to itself."""
    inner = torch.eye(size, dtype=torch.float64)
    inner[1:, 1:] = random_rotation(size - 1, generator)
    # The reflection that swaps the first axis and the direction of the ones.
    axis = torch.full((size,), -(size**-0.5), dtype=torch.float64)
    axis[0] += 1
    reflection = torch.eye(size, dtype=torch.float64) - 2 * torch.outer(axis, axis) / axis.square().sum()
    return reflection @ inner @ reflection


def _rotate_heads(heads: Heads, generator: torch.Generator) -> None:
    qkv: Any = heads.qkv
    proj: Any = heads.proj
    size = proj.in_features // heads.count
    scores, values = (
        torch.stack([random_rotation(size, generator) for _ in range(heads.count)]) for _ in ("scores", "values")
    )
    still = torch.eye(size, dtype=torch.float64).expand(heads.count, size, size)
    scores, values = scores if heads.rotates_scores else still, values if heads.rotates_values else still
    turned = torch.stack([scores, scores, values])
    weight = qkv.weight.double().cpu().view(3, heads.count, size, -1)
    _replace(qkv.weight, (turned @ weight).view(qkv.weight.shape))
    if qkv.bias is not None:
        bias = qkv.bias.double().cpu().view(3, heads.count, size, 1)
        _replace(qkv.bias, (turned @ bias).view(qkv.bias.shape))
    columns = proj.weight.double().cpu().view(-1, heads.count, size)
    _replace(proj.weight, torch.einsum("ohi,hji->ohj", columns, values).reshape(proj.weight.shape))


def _strip(stream: Stream) -> None:
    """Move LayerScale into the writers, and the affine part of the norms into the readers."""
    for writer in stream.writers:
        layer: Any = writer.layer
        if writer.scale is not None:
            gamma = writer.scale.double().cpu()
            _replace(layer.weight, gamma.view(-1, *(1 for _ in layer.weight.shape[1:])) * layer.weight.double().cpu())
            if layer.bias is not None:
                _replace(layer.bias, gamma * layer.bias.double().cpu())
            writer.scale.fill_(1)
    for wire in stream.wires:
        give_affine(wire.norm, cast("Any", wire.readers[0]).weight)
        gamma, beta = wire.norm.weight.double().cpu(), wire.norm.bias.double().cpu()
        for reader in wire.readers:
            linear: Any = reader
            weight = linear.weight.double().cpu()
            moved = weight @ beta
            if linear.bias is None:
                linear.bias = nn.Parameter(moved.to(linear.weight), requires_grad=False)
            else:
                _replace(linear.bias, linear.bias.double().cpu() + moved)
            _replace(linear.weight, weight * gamma)
        wire.norm.weight.fill_(1)
        wire.norm.bias.fill_(0)


def _replace(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Copy float64 ``values`` into ``tensor``, rounded once."""
    tensor.copy_(values.to(tensor))
