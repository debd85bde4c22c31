"""Adapter for timm's VisionTransformer: ViT, DeiT, and DINOv2-style networks with LayerScale."""

from functools import partial

import torch
from timm.layers import Mlp, PatchEmbed
from timm.layers.attention import Attention
from timm.layers.format import Format, nchw_to
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantAttention, QuantLinear
from isvit_lightning.networks.adapter import adapter_for, expect_type
from isvit_lightning.networks.factory import LayerFactory
from isvit_lightning.networks.known import require_known
from isvit_lightning.networks.opened import Heads, Stream, Unit, Wire, Writer
from isvit_lightning.quantizers import Role


class VitAdapter:
    """Units of a ViT: the patch projection, each block, the head (14 for twelve blocks).

    Args:
        model: the network.

    Raises:
        IsvitError: a part of the network is of an unknown kind.
    """

    def __init__(self, model: VisionTransformer) -> None:
        if type(model).forward_head is not VisionTransformer.forward_head:
            raise IsvitError(
                f"Cannot open {type(model).__qualname__}: its forward_head differs from VisionTransformer's, expected "
                "that one: choose a network of that type with model.network.name."
            )
        self.model = model
        expect_type(model.patch_embed, "patch_embed", PatchEmbed)
        expect_type(model.head, "head", nn.Linear, QuantLinear)
        if model.attn_pool is not None:
            raise IsvitError(
                "Cannot open attn_pool: attention pooling is not supported; choose a network with token or average "
                "pooling with model.network.name."
            )
        for index, block in enumerate(model.blocks):
            expect_type(block, f"blocks.{index}", Block)
            expect_type(block.mlp, f"blocks.{index}.mlp", Mlp)
            expect_type(block.norm1, f"blocks.{index}.norm1", nn.LayerNorm)
            expect_type(block.norm2, f"blocks.{index}.norm2", nn.LayerNorm)

    def insert(self, factory: LayerFactory) -> None:
        """Replace projection, norms, attention, MLP and head layers."""
        model, tokens = self.model, self._tokens()
        model.patch_embed.proj = factory.conv(model.patch_embed.proj, Role.IMAGE)
        for index, block in enumerate(model.blocks):
            require_known(block.attn, f"blocks.{index}.attn", Attention)
            attn = block.attn
            qkv = factory.linear(attn.qkv, Role.QKV_IN, tokens=tokens)
            proj = factory.linear(attn.proj, Role.PROJ_IN, tokens=tokens)
            shape = attn.num_heads, attn.head_dim, tokens
            block.attn = QuantAttention(attn, qkv, proj, factory.scores(*shape), factory.context(*shape))
            block.mlp.fc1 = factory.linear(block.mlp.fc1, Role.FC1_IN, tokens=tokens)
            block.mlp.fc2 = factory.linear(block.mlp.fc2, Role.GELU_OUT, tokens=tokens)
            block.norm1, block.norm2 = factory.norm(block.norm1), factory.norm(block.norm2)
        model.head = factory.linear(model.head, Role.HEAD_IN)

    def units(self) -> tuple[Unit, ...]:
        """Patch projection, blocks, head."""
        model = self.model
        units = [Unit("patch_embed.proj", model.patch_embed.proj, partial(before_projection, model.patch_embed))]
        for index, block in enumerate(model.blocks):
            units.append(Unit(f"blocks.{index}", block, _identity if index else self._embed))
        units.append(Unit("head", model.head, self._pool))
        return tuple(units)

    def wires(self) -> tuple[Wire, ...]:
        """norm1 → qkv and norm2 → fc1 of each block."""
        wires = []
        for index, block in enumerate(self.model.blocks):
            unit = f"blocks.{index}"
            wires.append(Wire(f"{unit}.attn.qkv", unit, block.norm1, (block.attn.qkv,)))
            wires.append(Wire(f"{unit}.mlp.fc1", unit, block.norm2, (block.mlp.fc1,)))
        return tuple(wires)

    def heads(self) -> tuple[Heads, ...]:
        """The attention of each block; norms of queries, keys or outputs stand in the way of a rotation."""
        found = []
        for index, block in enumerate(self.model.blocks):
            attn = block.attn
            scores = all(isinstance(norm, nn.Identity) for norm in (attn.q_norm, attn.k_norm))
            values = isinstance(attn.norm, nn.Identity)
            found.append(Heads(f"blocks.{index}.attn", attn.qkv, attn.proj, attn.num_heads, scores, values))
        return tuple(found)

    def stream(self) -> Stream:
        """The one residual stream; the final norm's reader is the head.

        Raises:
            IsvitError: something else than LayerNorm reads it, or a norm lies behind a layer that writes it.
        """
        model = self.model
        final = [norm for norm in (model.norm, model.fc_norm) if not isinstance(norm, nn.Identity)]
        between = (model.norm_pre, model.patch_embed.norm)
        if len(final) != 1 or not all(isinstance(norm, nn.Identity) for norm in between):
            raise IsvitError(
                "The residual stream of this network passes norms that no rotation can pass, expected one norm behind "
                "the last block and none before the first: take the rotation out of model.recipe.transforms."
            )
        writers = [Writer(model.patch_embed.proj)]
        for block in model.blocks:
            writers += [Writer(block.attn.proj, _gamma(block.ls1)), Writer(block.mlp.fc2, _gamma(block.ls2))]
        offsets = (model.pos_embed, model.cls_token, getattr(model, "reg_token", None))
        wires = (*self.wires(), Wire("head", "head", final[0], (model.head,)))
        return Stream(model.embed_dim, tuple(writers), tuple(part for part in offsets if part is not None), wires)

    def _tokens(self) -> int | None:
        """Length of the sequence; None where it depends on the image."""
        embed = self.model.patch_embed
        fixed = not (embed.dynamic_img_pad or getattr(self.model, "dynamic_img_size", False))
        return embed.num_patches + self.model.num_prefix_tokens if fixed and embed.num_patches else None

    def _embed(self, projected: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, rows, columns)`` to tokens with class token and positions."""
        tokens = after_projection(self.model.patch_embed, projected)
        tokens = self.model.patch_drop(self.model._pos_embed(tokens))
        return self.model.norm_pre(tokens)

    def _pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(batch, tokens, channels)`` to features ``(batch, channels)``."""
        return self.model.forward_head(self.model.norm(tokens), pre_logits=True)


def before_projection(patch_embed: PatchEmbed, images: torch.Tensor) -> torch.Tensor:
    """What timm's PatchEmbed does in front of its convolution: pad to whole patches, by option."""
    if not patch_embed.dynamic_img_pad:
        return images
    rows, columns = patch_embed.patch_size
    return nn.functional.pad(images, (0, -images.shape[-1] % columns, 0, -images.shape[-2] % rows))


def after_projection(patch_embed: PatchEmbed, projected: torch.Tensor) -> torch.Tensor:
    """What timm's PatchEmbed does behind its convolution."""
    if patch_embed.flatten:
        projected = projected.flatten(2).transpose(1, 2)
    elif patch_embed.output_fmt != Format.NCHW:
        projected = nchw_to(projected, patch_embed.output_fmt)
    return patch_embed.norm(projected)


def _gamma(scale: nn.Module) -> nn.Parameter | None:
    """Factors of timm's LayerScale; None where a block has none."""
    gamma: nn.Parameter | None = getattr(scale, "gamma", None)
    return gamma


def _identity(value: torch.Tensor) -> torch.Tensor:
    return value


@adapter_for.register
def _(model: VisionTransformer) -> VitAdapter:
    return VitAdapter(model)
