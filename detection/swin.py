"""mmdet's Swin backbone in units. Imports mmdet: import this module by way of ``detection.runtime``."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from mmcv.cnn.bricks import wrappers
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.backbones.swin import ShiftWindowMSA, SwinBlock, SwinTransformer, WindowMSA
from mmdet.models.layers import PatchEmbed, PatchMerging
from timm.models.swin_transformer import window_partition, window_reverse
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantWindowAttention
from isvit_lightning.networks.adapter import expect_type
from isvit_lightning.networks.factory import LayerFactory
from isvit_lightning.networks.known import require_known
from isvit_lightning.networks.opened import Heads, Unit, Wire
from isvit_lightning.networks.padding import padded_with
from isvit_lightning.quantizers import Role

LINEAR: Final = (nn.Linear, wrappers.Linear)
"""PyTorch's linear layer and mmcv's, which computes the same."""
CONV: Final = (nn.Conv2d, wrappers.Conv2d)
"""PyTorch's convolution and mmcv's, which computes the same."""


class QuantShiftWindowAttention(nn.Module):
    """Takes the place of mmdet's ShiftWindowMSA; its padding is what stage 2 made of an original zero.

    Args:
        attention: the float module.
        w_msa: quantized replacement of ``attention.w_msa``.
    """

    pad_value: torch.Tensor

    def __init__(self, attention: ShiftWindowMSA, w_msa: QuantWindowAttention) -> None:
        super().__init__()
        self.window_size, self.shift_size = int(attention.window_size), int(attention.shift_size)
        self.w_msa = w_msa
        self.drop = attention.drop
        self.register_buffer("pad_value", w_msa.qkv.weight.new_zeros(w_msa.qkv.in_features))

    def forward(self, query: torch.Tensor, hw_shape: tuple[int, int]) -> torch.Tensor:
        """Attend within windows.

        Args:
            query: tokens behind the norm ``(batch, height · width, channels)``.
            hw_shape: height and width.

        Returns:
            Tokens of the same shape.
        """
        (height, width), size, shift = hw_shape, self.window_size, self.shift_size
        # Not its len(), which would fix the batch of a graph that is exported.
        x = self._pad(query.view(query.shape[0], height, width, -1))
        padded = (x.shape[1], x.shape[2])
        if shift:
            x = torch.roll(x, (-shift, -shift), dims=(1, 2))
        windows = window_partition(x, (size, size)).flatten(1, 2)
        attended = self.w_msa(windows, self._mask(x) if shift else None)
        x = window_reverse(attended.unflatten(1, (size, size)), (size, size), *padded)
        if shift:
            x = torch.roll(x, (shift, shift), dims=(1, 2))
        return self.drop(x[:, :height, :width].reshape(query.shape))

    def _pad(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, height, width, channels)`` filled up to whole windows."""
        bottom, right = (-length % self.window_size for length in x.shape[1:3])
        return padded_with(x, self.pad_value, bottom, right) if bottom or right else x

    def _mask(self, x: torch.Tensor) -> torch.Tensor:
        """``(windows, tokens, tokens)``: -100 between tokens that the cyclic shift made neighbors."""
        rows, columns = (self._regions(length, x.device) for length in x.shape[1:3])
        regions = (3 * rows[:, None] + columns).view(1, *x.shape[1:3], 1)
        regions = window_partition(regions, (self.window_size, self.window_size)).flatten(1)
        inside = (regions[..., None] == torch.arange(9, device=x.device)).to(x.dtype)
        # A product, which a compiler computes once; comparisons it would repeat in the softmax of each head and image.
        together = inside @ inside.transpose(1, 2)
        return (together - 1) * 100

    def _regions(self, length: int, device: torch.device) -> torch.Tensor:
        """0, 1 or 2 for each of ``length`` rows or columns: before the last window, in it, wrapped around."""
        place = torch.arange(length, device=device)
        return (place >= length - self.window_size).int() + (place >= length - self.shift_size).int()


class MapBlock(nn.Module):
    """One of mmdet's blocks as a unit, which maps one tensor to one tensor.

    Args:
        block: float or quantized; the network keeps it where it is.
    """

    def __init__(self, block: SwinBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, height, width, channels)`` to the same shape."""
        return self.block(x.flatten(1, 2), (x.shape[1], x.shape[2])).view(x.shape)


class SwinBackbone:
    """Units of mmdet's Swin: the patch projection, each block, each patch-merging reduction.

    Args:
        model: the backbone.
        path: its place in the detector.

    Raises:
        IsvitError: a part of it is of an unknown kind.
    """

    def __init__(self, model: SwinTransformer, path: str = "backbone") -> None:
        self.model: Any = model  # its own annotations of its parts say Module, or nothing
        self.path = path
        expect_type(model.patch_embed, f"{path}.patch_embed", PatchEmbed)
        if model.use_abs_pos_embed:
            raise IsvitError(
                f"Cannot open {path}: it adds absolute positions, expected Swin's relative ones alone: choose another "
                "model.network.config."
            )
        for name, block in self._blocks():
            expect_type(block, name, SwinBlock)
            expect_type(block.norm1, f"{name}.norm1", nn.LayerNorm)
            expect_type(block.norm2, f"{name}.norm2", nn.LayerNorm)
            expect_type(block.ffn, f"{name}.ffn", FFN)
        for name, merging in self._mergings():
            expect_type(merging, name, PatchMerging)
            expect_type(merging.norm, f"{name}.norm", nn.LayerNorm)

    def insert(self, factory: LayerFactory) -> None:
        """Replace the projection, the layers of the blocks and the reductions."""
        embed = self.model.patch_embed
        embed.projection = factory.conv(embed.projection, Role.IMAGE, known=CONV)
        for name, block in self._blocks():
            require_known(block.attn, f"{name}.attn", ShiftWindowMSA)
            msa = block.attn.w_msa
            require_known(msa, f"{name}.attn.w_msa", WindowMSA)
            tokens = len(msa.relative_position_index)
            qkv = factory.linear(msa.qkv, Role.QKV_IN, tokens=tokens)
            proj = factory.linear(msa.proj, Role.PROJ_IN, tokens=tokens)
            shape = msa.num_heads, msa.proj.in_features // msa.num_heads, tokens
            quantized = QuantWindowAttention(msa, qkv, proj, factory.scores(*shape), factory.context(*shape))
            block.attn = QuantShiftWindowAttention(block.attn, quantized)
            block.ffn.layers[0][0] = factory.linear(block.ffn.layers[0][0], Role.FC1_IN, known=LINEAR)
            block.ffn.layers[1] = factory.linear(block.ffn.layers[1], Role.GELU_OUT, known=LINEAR)
            block.norm1, block.norm2 = factory.norm(block.norm1), factory.norm(block.norm2)
        for _, merging in self._mergings():
            merging.norm = factory.norm(merging.norm)
            merging.reduction = factory.linear(merging.reduction, Role.REDUCTION_IN)

    def units(self) -> tuple[Unit, ...]:
        """Patch projection, then the blocks of each stage and the reduction behind them."""
        embed = self.model.patch_embed
        units = [Unit(f"{self.path}.patch_embed.projection", embed.projection, partial(_before_projection, embed))]
        enter: Callable[[torch.Tensor], torch.Tensor] = partial(_after_projection, embed)
        for index, stage in enumerate(self.model.stages):
            for position, block in enumerate(stage.blocks):
                units.append(Unit(f"{self.path}.stages.{index}.blocks.{position}", MapBlock(block), enter))
                enter = _identity
            if stage.downsample is not None:
                merging = stage.downsample
                name = f"{self.path}.stages.{index}.downsample.reduction"
                units.append(Unit(name, merging.reduction, partial(_merge, merging)))
        return tuple(units)

    def wires(self) -> tuple[Wire, ...]:
        """norm1 → qkv and norm2 → fc1 of each block, norm → reduction of each patch merging."""
        wires = []
        for name, block in self._blocks():
            attn = block.attn
            padded = attn if isinstance(attn, QuantShiftWindowAttention) else None
            wires.append(Wire(f"{name}.attn.w_msa.qkv", name, block.norm1, (attn.w_msa.qkv,), padded))
            wires.append(Wire(f"{name}.ffn.layers.0.0", name, block.norm2, (block.ffn.layers[0][0],)))
        for name, merging in self._mergings():
            wires.append(Wire(f"{name}.reduction", f"{name}.reduction", merging.norm, (merging.reduction,)))
        return tuple(wires)

    def heads(self) -> tuple[Heads, ...]:
        """The window attention of each block."""
        return tuple(
            Heads(f"{name}.attn.w_msa", msa.qkv, msa.proj, msa.num_heads)
            for name, block in self._blocks()
            for msa in (block.attn.w_msa,)
        )

    def _blocks(self) -> list[tuple[str, Any]]:
        return [
            (f"{self.path}.stages.{index}.blocks.{position}", block)
            for index, stage in enumerate(self.model.stages)
            for position, block in enumerate(stage.blocks)
        ]

    def _mergings(self) -> list[tuple[str, Any]]:
        return [
            (f"{self.path}.stages.{index}.downsample", stage.downsample)
            for index, stage in enumerate(self.model.stages)
            if stage.downsample is not None
        ]


def _before_projection(embed: PatchEmbed, images: torch.Tensor) -> torch.Tensor:
    return embed.adap_padding(images) if embed.adap_padding else images


def _after_projection(embed: PatchEmbed, projected: torch.Tensor) -> torch.Tensor:
    """``(batch, channels, rows, columns)`` to normalized ``(batch, rows, columns, channels)``."""
    tokens = projected.permute(0, 2, 3, 1)
    return tokens.contiguous() if embed.norm is None else embed.norm(tokens)


def _merge(merging: PatchMerging, x: torch.Tensor) -> torch.Tensor:
    """What mmdet's PatchMerging does before its reduction: 2 x 2 neighbors in the order of unfold, then the norm."""
    maps = x.permute(0, 3, 1, 2)
    maps = merging.adap_padding(maps) if merging.adap_padding else maps
    merged = merging.sampler(maps).transpose(1, 2)
    stride: Any = merging.sampler.stride
    rows, columns = (length // step for length, step in zip(maps.shape[2:], stride, strict=True))
    return merging.norm(merged).unflatten(1, (rows, columns))


def _identity(value: torch.Tensor) -> torch.Tensor:
    return value
