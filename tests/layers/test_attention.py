"""Attention with reachable matmuls against timm's own."""

from typing import Any

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.swin_transformer import WindowAttention
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantAttention, QuantWindowAttention
from isvit_lightning.networks import Axes, LayerFactory, calibrate_activations, quantizers, switch
from isvit_lightning.quantizers import Role
from tests.helpers import DEFAULT_BITS, DEFAULT_RECIPE, randomized

FACTORY = LayerFactory(DEFAULT_RECIPE.placement.build(DEFAULT_BITS))


def open_attention(attention: Attention) -> QuantAttention:
    """Quantized form of ``attention``, switched off."""
    qkv, proj = FACTORY.linear(attention.qkv, Role.QKV_IN), FACTORY.linear(attention.proj, Role.PROJ_IN)
    shape = attention.num_heads, attention.head_dim
    opened = QuantAttention(attention, qkv, proj, FACTORY.scores(*shape), FACTORY.context(*shape)).eval()
    switch(opened, weights=False, activations=False)
    return opened


def open_window_attention(attention: WindowAttention) -> QuantWindowAttention:
    """Quantized form of ``attention``, switched off."""
    qkv, proj = FACTORY.linear(attention.qkv, Role.QKV_IN), FACTORY.linear(attention.proj, Role.PROJ_IN)
    shape = attention.num_heads, attention.proj.in_features // attention.num_heads
    opened = QuantWindowAttention(attention, qkv, proj, FACTORY.scores(*shape), FACTORY.context(*shape)).eval()
    switch(opened, weights=False, activations=False)
    return opened


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "qkv_bias": {"qkv_bias": True},
    "qk_norm": {"qkv_bias": True, "qk_norm": True, "norm_layer": nn.LayerNorm},
    "scale_norm": {"scale_norm": True, "norm_layer": nn.LayerNorm},
    "no_proj_bias": {"proj_bias": False},
    "head_dim": {"attn_head_dim": 5},
    "one_head": {"num_heads": 1},
}


def masks() -> dict[str, dict[str, Any]]:
    """Keyword arguments of a forward pass over 2 x 7 tokens and 4 heads."""
    bias = torch.randn(2, 1, 7, 7)
    return {
        "none": {},
        "float": {"attn_mask": bias},
        "float_per_head": {"attn_mask": torch.randn(2, 4, 7, 7)},
        "bool": {"attn_mask": (bias > 0) | torch.eye(7, dtype=torch.bool)},
        "causal": {"is_causal": True},
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fused", [True, False])
def test_switched_off_is_timms_attention(variant: str, fused: bool) -> None:
    attention = randomized(Attention(16, **{"num_heads": 4, **VARIANTS[variant]}))
    attention.fused_attn = fused
    tokens = torch.randn(2, 7, 16)
    torch.testing.assert_close(open_attention(attention)(tokens), attention(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", ["none", "float", "float_per_head", "bool", "causal"])
@pytest.mark.parametrize("fused", [True, False])
def test_masks_are_timms(mask: str, fused: bool) -> None:
    attention = randomized(Attention(16, num_heads=4, qkv_bias=True))
    attention.fused_attn = fused
    tokens, arguments = torch.randn(2, 7, 16), masks()[mask]
    opened = open_attention(attention)
    torch.testing.assert_close(opened(tokens, **arguments), attention(tokens, **arguments), rtol=1e-5, atol=1e-5)
    if arguments:
        assert not torch.allclose(opened(tokens, **arguments), opened(tokens), atol=1e-3)


def test_masked_tokens_stay_masked_when_quantized() -> None:
    """A masked score is minus infinity behind the quantizers: earlier outputs do not depend on later tokens."""
    opened = open_attention(randomized(Attention(16, num_heads=4, qkv_bias=True)))
    tokens = torch.randn(2, 7, 16)
    switch(opened, weights=False, activations=True)
    calibrate_activations(opened, lambda: opened(tokens, is_causal=True))
    changed = tokens.clone()
    changed[:, 4:] += 1
    before, after = opened(tokens, is_causal=True), opened(changed, is_causal=True)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


def test_gated_attention_is_refused() -> None:
    with pytest.raises(IsvitError, match="gated"):
        open_attention(Attention(16, num_heads=4, gated=True))


def test_quantizers_see_queries_keys_probabilities_and_values() -> None:
    attention = randomized(Attention(16, num_heads=4, qkv_bias=True))
    opened = open_attention(attention)
    seen: dict[Role, torch.Tensor] = {}
    for quantizer in quantizers(opened).values():

        def record(module: nn.Module, args: tuple[torch.Tensor], role: Role = quantizer.role) -> None:
            seen[role] = args[0]

        quantizer.register_forward_pre_hook(record)
    tokens = torch.randn(2, 7, 16)
    opened(tokens)
    q, k, v = attention.qkv(tokens).reshape(2, 7, 3, 4, 4).permute(2, 0, 3, 1, 4)
    probabilities = (q @ k.transpose(-2, -1) * attention.scale).softmax(dim=-1)
    torch.testing.assert_close(seen[Role.QUERY], q * attention.scale)
    torch.testing.assert_close(seen[Role.KEY], k.transpose(-2, -1))
    torch.testing.assert_close(seen[Role.ATTN_PROB], probabilities)
    torch.testing.assert_close(seen[Role.VALUE], v)
    assert torch.equal(seen[Role.QKV_IN], tokens)
    torch.testing.assert_close(seen[Role.PROJ_IN], (probabilities @ v).transpose(1, 2).reshape(2, 7, 16))


def test_scaling_queries_first_moves_no_code() -> None:
    """Published ViT code quantizes the unscaled query; the grid scales along."""
    queries = torch.randn(2, 4, 7, 16)
    before, after = FACTORY.quantizer(Role.QUERY, Axes()), FACTORY.quantizer(Role.QUERY, Axes())
    before.calibrate(queries)
    after.calibrate(queries * 16**-0.5)
    assert torch.equal(before.encode(queries), after.encode(queries * 16**-0.5))


WINDOW_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_qkv_bias": {"qkv_bias": False},
    "head_dim": {"head_dim": 5},
    "oblong_window": {"window_size": (2, 5)},
}


@pytest.mark.parametrize("variant", WINDOW_VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_switched_off_is_timms_window_attention(variant: str, masked: bool, fused: bool) -> None:
    attention = randomized(WindowAttention(12, **{"num_heads": 3, "window_size": 3, **WINDOW_VARIANTS[variant]}))
    attention.fused_attn = fused
    area = attention.window_area
    # Two images of four windows: the mask repeats for each image.
    windows = torch.randn(8, area, 12)
    mask = torch.where(torch.rand(4, area, area) > 0.5, -100.0, 0.0) if masked else None
    torch.testing.assert_close(
        open_window_attention(attention)(windows, mask), attention(windows, mask), rtol=1e-5, atol=1e-5
    )


def test_window_attention_keeps_its_names_and_buffers() -> None:
    attention = randomized(WindowAttention(12, num_heads=3, window_size=3))
    names = set(attention.state_dict())
    opened = open_window_attention(attention)
    assert names <= set(opened.state_dict())
    assert "relative_position_index" not in opened.state_dict()
    assert opened.relative_position_bias_table is attention.relative_position_bias_table
