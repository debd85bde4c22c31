"""Adapter for timm's SwinTransformer (v1)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, Mlp, PatchEmbed
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantLinear, QuantWindowAttention
from isvit_lightning.networks.adapter import adapter_for, expect_type
from isvit_lightning.networks.factory import LayerFactory
from isvit_lightning.networks.known import require_known
from isvit_lightning.networks.opened import Heads, Unit, Wire
from isvit_lightning.networks.padding import padded_with
from isvit_lightning.networks.vit import after_projection, before_projection
from isvit_lightning.quantizers import Role


class QuantSwinBlock(nn.Module):
    """timm's Swin block whose padding holds what an original zero became when stage 2 folded the norm before it.

    Args:
        block: the float block; its parts are taken over.
        attn: quantized replacement of ``block.attn``.
    """

    pad_value: torch.Tensor
    attn_mask: torch.Tensor | None

    def __init__(self, block: SwinTransformerBlock, attn: QuantWindowAttention) -> None:
        super().__init__()
        if getattr(block, "dynamic_mask", False):
            raise IsvitError("A Swin block with dynamic_mask is not supported; build the network with a fixed size.")
        self.window_size, self.shift_size = block.window_size, block.shift_size
        self.norm1, self.attn, self.drop_path1 = block.norm1, attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self.register_buffer("attn_mask", block.attn_mask, persistent=False)
        self.register_buffer("pad_value", attn.qkv.weight.new_zeros(block.dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, height, width, channels)`` to the same shape."""
        x = x + self.drop_path1(self._attend(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        _, height, width, channels = x.shape
        shift = (-self.shift_size[0], -self.shift_size[1])
        shifted = torch.roll(x, shift, dims=(1, 2)) if any(shift) else x
        bottom, right = -height % self.window_size[0], -width % self.window_size[1]
        if bottom or right:
            shifted = padded_with(shifted, self.pad_value, bottom, right)
        padded = shifted.shape[1:3]
        windows = window_partition(shifted, self.window_size)
        windows = windows.view(-1, self.window_size[0] * self.window_size[1], channels)
        attended = self.attn(windows, self.attn_mask).view(-1, *self.window_size, channels)
        merged = window_reverse(attended, self.window_size, *padded)[:, :height, :width]
        return torch.roll(merged, self.shift_size, dims=(1, 2)) if any(shift) else merged.contiguous()


class SwinAdapter:
    """Units of a Swin: the patch projection, each block, each patch-merging reduction, the head.

    17 for Swin-T, 29 for Swin-S and Swin-B.

    Args:
        model: the network.

    Raises:
        IsvitError: a part of the network is of an unknown kind.
    """

    def __init__(self, model: SwinTransformer) -> None:
        self.model = model
        expect_type(model.patch_embed, "patch_embed", PatchEmbed)
        expect_type(model.head, "head", ClassifierHead)
        expect_type(model.head.fc, "head.fc", nn.Linear, QuantLinear)
        for name, block in self._blocks():
            expect_type(block, name, SwinTransformerBlock, QuantSwinBlock)
            expect_type(block.norm1, f"{name}.norm1", nn.LayerNorm)
            expect_type(block.norm2, f"{name}.norm2", nn.LayerNorm)
            expect_type(block.mlp, f"{name}.mlp", Mlp)
        for name, merging in self._mergings():
            expect_type(merging, name, PatchMerging)
            expect_type(merging.norm, f"{name}.norm", nn.LayerNorm)

    def _blocks(self) -> list[tuple[str, Any]]:
        return [
            (f"layers.{stage}.blocks.{index}", block)
            for stage, layer in enumerate(self.model.layers)
            for index, block in enumerate(layer.blocks)
        ]

    def _mergings(self) -> list[tuple[str, Any]]:
        return [
            (f"layers.{stage}.downsample", layer.downsample)
            for stage, layer in enumerate(self.model.layers)
            if not isinstance(layer.downsample, nn.Identity)
        ]

    def insert(self, factory: LayerFactory) -> None:
        """Replace projection, blocks, reductions and head layers."""
        model = self.model
        model.patch_embed.proj = factory.conv(model.patch_embed.proj, Role.IMAGE)
        for stage, layer in enumerate(model.layers):
            for index, block in enumerate(layer.blocks):
                layer.blocks[index] = _quantize_block(block, factory, f"layers.{stage}.blocks.{index}")
        for _, merging in self._mergings():
            merging.norm = factory.norm(merging.norm)
            merging.reduction = factory.linear(merging.reduction, Role.REDUCTION_IN)
        model.head.fc = factory.linear(model.head.fc, Role.HEAD_IN)

    def units(self) -> tuple[Unit, ...]:
        """Patch projection, then the reduction and the blocks of each stage, then the head."""
        model = self.model
        units = [Unit("patch_embed.proj", model.patch_embed.proj, partial(before_projection, model.patch_embed))]
        enter: Callable[[torch.Tensor], torch.Tensor] = partial(after_projection, model.patch_embed)
        for stage, layer in enumerate(model.layers):
            if not isinstance(layer.downsample, nn.Identity):
                name = f"layers.{stage}.downsample.reduction"
                units.append(Unit(name, layer.downsample.reduction, partial(_merge, layer.downsample)))
            for index, block in enumerate(layer.blocks):
                units.append(Unit(f"layers.{stage}.blocks.{index}", block, enter))
                enter = _identity
        units.append(Unit("head.fc", model.head.fc, self._pool))
        return tuple(units)

    def wires(self) -> tuple[Wire, ...]:
        """norm1 → qkv and norm2 → fc1 of each block, norm → reduction of each patch merging."""
        wires = []
        for name, block in self._blocks():
            padded = block if isinstance(block, QuantSwinBlock) else None
            wires.append(Wire(f"{name}.attn.qkv", name, block.norm1, (block.attn.qkv,), padded))
            wires.append(Wire(f"{name}.mlp.fc1", name, block.norm2, (block.mlp.fc1,)))
        for name, merging in self._mergings():
            wires.append(Wire(f"{name}.reduction", f"{name}.reduction", merging.norm, (merging.reduction,)))
        return tuple(wires)

    def heads(self) -> tuple[Heads, ...]:
        """The window attention of each block."""
        return tuple(
            Heads(f"{name}.attn", block.attn.qkv, block.attn.proj, block.attn.num_heads)
            for name, block in self._blocks()
        )

    def _pool(self, features: torch.Tensor) -> torch.Tensor:
        """``(batch, height, width, channels)`` to ``(batch, channels)``."""
        return self.model.head(self.model.norm(features), pre_logits=True)


def _quantize_block(block: SwinTransformerBlock, factory: LayerFactory, name: str) -> QuantSwinBlock:
    attn = block.attn
    require_known(block, name, SwinTransformerBlock)
    require_known(attn, f"{name}.attn", WindowAttention)
    tokens = attn.window_area
    qkv = factory.linear(attn.qkv, Role.QKV_IN, tokens=tokens)
    proj = factory.linear(attn.proj, Role.PROJ_IN, tokens=tokens)
    shape = attn.num_heads, attn.proj.in_features // attn.num_heads, tokens
    quantized = QuantSwinBlock(
        block, QuantWindowAttention(attn, qkv, proj, factory.scores(*shape), factory.context(*shape))
    )
    quantized.mlp.fc1 = factory.linear(block.mlp.fc1, Role.FC1_IN)
    quantized.mlp.fc2 = factory.linear(block.mlp.fc2, Role.GELU_OUT)
    quantized.norm1, quantized.norm2 = factory.norm(block.norm1), factory.norm(block.norm2)
    return quantized


def _merge(merging: PatchMerging, x: torch.Tensor) -> torch.Tensor:
    """What timm's PatchMerging does before its reduction: 2 x 2 neighbours side by side, then the norm."""
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    x = x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
    return merging.norm(x)


def _identity(value: torch.Tensor) -> torch.Tensor:
    return value


@adapter_for.register
def _(model: SwinTransformer) -> SwinAdapter:
    return SwinAdapter(model)
