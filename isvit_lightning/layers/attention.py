"""Self-attention whose two matrix products carry quantizers."""

from typing import Protocol

import torch
from timm.layers import maybe_add_mask, resolve_self_attn_mask
from timm.layers.attention import Attention
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers.linear import QuantLinear
from isvit_lightning.layers.matmul import QuantMatMul


class QuantAttention(nn.Module):
    """timm's ViT attention with reachable matmuls; query/key norms and masks are kept.

    Args:
        attention: the float module; its parameters are taken over.
        qkv: quantized replacement of ``attention.qkv``.
        proj: quantized replacement of ``attention.proj``.
        scores: product of queries and keys.
        context: product of attention probabilities and values.

    Raises:
        IsvitError: the attention is gated.
    """

    def __init__(
        self, attention: Attention, qkv: QuantLinear, proj: QuantLinear, scores: QuantMatMul, context: QuantMatMul
    ) -> None:
        super().__init__()
        if getattr(attention, "gate", None) is not None:
            raise IsvitError("A gated attention (Attention.gate) is not supported; expected timm's plain Attention.")
        self.num_heads, self.head_dim, self.scale = attention.num_heads, attention.head_dim, attention.scale
        self.qkv = qkv
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.scores = scores
        self.attn_drop = attention.attn_drop
        self.context = context
        self.norm = attention.norm
        self.proj = proj
        self.proj_drop = attention.proj_drop

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        """Attend over tokens.

        Args:
            x: tokens ``(batch, tokens, channels)``.
            attn_mask: added to (float) or selecting from (bool) the scores ``(batch, heads, tokens, tokens)``.
            is_causal: hide later tokens.

        Returns:
            Tokens ``(batch, tokens, channels)``.
        """
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        # Contiguous at once: the quantizers would make several copies of each.
        q, k, v = qkv.contiguous().unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        # Scaling the queries first moves no code (a uniform grid scales along) and spares a pass over the scores.
        scores = self.scores(q * self.scale, k.transpose(-2, -1).contiguous())
        if attn_mask is not None or is_causal:
            scores = maybe_add_mask(scores, resolve_self_attn_mask(tokens, scores, attn_mask, is_causal))
        probabilities = self.attn_drop(scores.softmax(dim=-1))
        out = self.context(probabilities, v).transpose(1, 2).reshape(batch, tokens, -1)
        return self.proj_drop(self.proj(self.norm(out)))


class WindowAttentionLike(Protocol):
    """What the window attentions of different libraries have in common."""

    num_heads: int
    scale: float
    relative_position_bias_table: nn.Parameter
    relative_position_index: torch.Tensor
    attn_drop: nn.Module
    proj_drop: nn.Module


class QuantWindowAttention(nn.Module):
    """Swin's window attention with reachable matmuls; relative position bias and shift mask are kept.

    Args:
        attention: the float module, of any library; its parameters are taken over.
        qkv: quantized replacement of ``attention.qkv``.
        proj: quantized replacement of ``attention.proj``.
        scores: product of scaled queries and keys.
        context: product of attention probabilities and values.
    """

    relative_position_index: torch.Tensor

    def __init__(
        self,
        attention: WindowAttentionLike,
        qkv: QuantLinear,
        proj: QuantLinear,
        scores: QuantMatMul,
        context: QuantMatMul,
    ) -> None:
        super().__init__()
        self.num_heads, self.scale = attention.num_heads, attention.scale
        self.window_area = len(attention.relative_position_index)
        self.relative_position_bias_table = attention.relative_position_bias_table
        self.register_buffer("relative_position_index", attention.relative_position_index, persistent=False)
        self.qkv = qkv
        self.scores = scores
        self.attn_drop = attention.attn_drop
        self.context = context
        self.proj = proj
        self.proj_drop = attention.proj_drop

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attend within windows.

        Args:
            x: tokens ``(windows · batch, tokens, channels)``.
            mask: ``(windows, tokens, tokens)``, added to the scores.

        Returns:
            Tokens ``(windows · batch, tokens, channels)``.
        """
        windows, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        # Contiguous at once: the quantizers would make several copies of each.
        q, k, v = qkv.contiguous().unbind(0)
        scores = self.scores(q * self.scale, k.transpose(-2, -1).contiguous()) + self._position_bias()
        if mask is not None:
            shape = scores.shape
            scores = (scores.view(-1, mask.shape[0], *shape[1:]) + mask.unsqueeze(1)).view(shape)
        probabilities = self.attn_drop(scores.softmax(dim=-1))
        out = self.context(probabilities, v).transpose(1, 2).reshape(windows, tokens, -1)
        return self.proj_drop(self.proj(out))

    def _position_bias(self) -> torch.Tensor:
        """Bias ``(heads, tokens, tokens)`` looked up in the table."""
        table = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return table.view(self.window_area, self.window_area, -1).permute(2, 0, 1)
