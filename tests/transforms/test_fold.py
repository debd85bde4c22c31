"""Stage 2: the fold is exact in float64 with a whole zero point, and only then."""

from typing import Literal

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantLinear
from isvit_lightning.networks import NormLinearPair, OpenedNetwork, calibrate_activations, open_quantized, switch
from isvit_lightning.quantizers import PerChannel, PerTensor, RangeSearch, Role, UniformQuantizer
from isvit_lightning.recipe.method import Bits, Method, repq
from isvit_lightning.stages.reparameterize import reparameterize
from tests.helpers import double_precision, image_batch, relative_change, tiny_swin, tiny_vit

Statistic = Literal["mean", "median"]
STATISTIC = pytest.mark.parametrize("statistic", ["mean", "median"])
BITS = pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])

EXACT = 1e-5
"""Largest relative change of the next layer's output that DESIGN.md allows."""


def make_pair(
    bits: int = 4, bias: bool = True, search: RangeSearch | None = None
) -> tuple[NormLinearPair, torch.Tensor]:
    """A float64 pair of 12 channels with uneven ranges, calibrated, and inputs of its norm; the weight stays float."""
    norm = nn.LayerNorm(12).double()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(12).exp())
        norm.bias.copy_(torch.randn(12) * 2)
    linear = nn.Linear(12, 9, bias=bias).double()
    quantizer = UniformQuantizer(bits, PerChannel(12), Role.QKV_IN, search).double()
    layer = QuantLinear(linear, quantizer, UniformQuantizer(bits, PerChannel(9, axis=-2), Role.WEIGHT).double())
    layer.weight_quantizer.enabled = False
    tokens = torch.randn(8, 30, 12, dtype=torch.float64)
    quantizer.calibrate(norm(tokens))
    return NormLinearPair("attn.qkv", "block", norm, layer), tokens


def output(pair: NormLinearPair, tokens: torch.Tensor) -> torch.Tensor:
    """What the next layer computes."""
    return pair.linear(pair.norm(tokens))


@BITS
@STATISTIC
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("include_zero", [True, False])
def test_whole_zero_point_is_exact(bits: int, statistic: Statistic, bias: bool, include_zero: bool) -> None:
    pair, tokens = make_pair(bits, bias, RangeSearch(include_zero=include_zero))
    before = output(pair, tokens)
    reparameterize(pair, statistic)
    assert relative_change(output(pair, tokens), before) < EXACT


@BITS
def test_fractional_zero_point_is_not_exact(bits: int) -> None:
    pair, tokens = make_pair(bits)
    before = output(pair, tokens)
    reparameterize(pair, "mean", round_zero_point=False)
    zero_point = pair.linear.input_quantizer.zero_point
    assert zero_point.item() != round(zero_point.item())
    # The published fold moves every grid by a part of a step: as large as the quantization error itself.
    assert relative_change(output(pair, tokens), before) > 0.3 / 2**bits
    with pytest.raises(IsvitError, match="round_zero_point"):
        pair.linear.input_quantizer.encode(pair.norm(tokens))


@STATISTIC
def test_norm_and_linear_against_the_equations(statistic: Statistic) -> None:
    """Equations 15 and 16, element by element."""
    pair, _ = make_pair()
    quantizer = pair.linear.input_quantizer
    scale, zero = quantizer.scale.tolist(), quantizer.zero_point.tolist()
    gamma, beta = pair.norm.weight.tolist(), pair.norm.bias.tolist()
    weight, bias = pair.linear.weight.tolist(), pair.linear.bias.tolist()
    reparameterize(pair, statistic)

    def middle(values: list[float]) -> float:
        # torch's median of an even count is the lower one.
        return sum(values) / 12 if statistic == "mean" else sorted(values)[5]

    new_scale, new_zero = middle(scale), float(round(middle(zero)))
    assert pair.linear.input_quantizer.scale.item() == pytest.approx(new_scale, rel=1e-12)
    assert pair.linear.input_quantizer.zero_point.item() == new_zero
    for i in range(12):
        r1, r2 = scale[i] / new_scale, zero[i] - new_zero
        assert pair.norm.weight[i].item() == pytest.approx(gamma[i] / r1, rel=1e-12)
        assert pair.norm.bias[i].item() == pytest.approx((beta[i] + scale[i] * r2) / r1, rel=1e-10)
        for j in range(9):
            assert pair.linear.weight[j, i].item() == pytest.approx(r1 * weight[j][i], rel=1e-12)
    for j in range(9):
        moved = sum(scale[i] * (zero[i] - new_zero) * weight[j][i] for i in range(12))
        assert pair.linear.bias[j].item() == pytest.approx(bias[j] - moved, rel=1e-10, abs=1e-12)


def test_float_function_of_the_pair_is_unchanged() -> None:
    pair, tokens = make_pair()
    pair.linear.input_quantizer.enabled = False
    before = output(pair, tokens)
    reparameterize(pair)
    assert relative_change(output(pair, tokens), before) < 1e-12


def test_codes_move_by_the_shift_of_their_zero_point() -> None:
    pair, tokens = make_pair()
    old = pair.linear.input_quantizer
    steps = old.encode(pair.norm(tokens)) - old.zero_point
    low, high = -old.zero_point, 15 - old.zero_point
    reparameterize(pair)
    new = pair.linear.input_quantizer
    codes = new.encode(pair.norm(tokens))
    inside = (steps > low) & (steps < high)
    assert torch.equal((steps + old.zero_point)[inside], codes[inside].double())


def test_new_quantizer_is_per_tensor_and_keeps_the_rest() -> None:
    pair, _ = make_pair(3)
    old = pair.linear.input_quantizer
    old.freeze()
    reparameterize(pair)
    new = pair.linear.input_quantizer
    assert new is not old
    assert (new.granularity, new.scale.shape, new.zero_point.shape) == (PerTensor(), (), ())
    assert (new.bits, new.role, new.search) == (3, Role.QKV_IN, old.search)
    assert new.calibrated
    assert new.frozen
    assert new.enabled
    assert new.scale.dtype == torch.float64
    assert 0 <= new.zero_point.item() <= 7


def test_zero_point_is_clamped_to_a_code() -> None:
    pair, _ = make_pair(3, search=RangeSearch(include_zero=False))
    for value, expected in ((40.0, 7.0), (-40.0, 0.0)):
        pair, tokens = make_pair(3)
        pair.linear.input_quantizer.zero_point.fill_(value)
        pair.linear.input_quantizer.refresh()
        before = output(pair, tokens)
        reparameterize(pair)
        assert pair.linear.input_quantizer.zero_point.item() == expected
        torch.testing.assert_close(output(pair, tokens), before)


def test_dead_channel_neither_explodes_nor_drags() -> None:
    pair, tokens = make_pair()
    with torch.no_grad():
        pair.norm.weight[3] = pair.norm.bias[3] = 0
    pair.linear.input_quantizer.calibrate(pair.norm(tokens))
    before = output(pair, tokens)
    reparameterize(pair)
    assert all(bool(p.isfinite().all()) for p in (*pair.norm.parameters(), *pair.linear.parameters()))
    assert relative_change(output(pair, tokens), before) < EXACT


def test_made_bias_is_a_parameter_without_gradient() -> None:
    pair, _ = make_pair(bias=False)
    assert pair.linear.bias is None
    reparameterize(pair)
    assert isinstance(pair.linear.bias, nn.Parameter)
    assert not pair.linear.bias.requires_grad
    assert "bias" in pair.linear.state_dict()


def test_other_quantizers_are_refused() -> None:
    pair, _ = make_pair()
    pair.linear.input_quantizer = nn.Identity()
    with pytest.raises(TypeError, match=r"attn\.qkv: stage 2 needs a uniform input quantizer"):
        reparameterize(pair)


def test_uncalibrated_pair_is_refused_and_left_whole() -> None:
    pair, tokens = make_pair()
    pair.linear.input_quantizer = UniformQuantizer(4, PerChannel(12), Role.QKV_IN).double()
    with pytest.raises(IsvitError, match="calibrated"):
        reparameterize(pair)
    assert bool(pair.norm(tokens).isfinite().all())
    assert bool(pair.linear.weight.isfinite().all())


def open_in_double(family: str, method: Method, size: int, **changes: object) -> tuple[OpenedNetwork, torch.Tensor]:
    """A float64 network with calibrated activations and float weights, before stage 2."""
    with double_precision():
        model = tiny_vit(img_size=size, **changes) if family == "vit" else tiny_swin(img_size=size, **changes)
        images = image_batch(size, count=4)
        opened = open_quantized(model, Bits(), method)
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.model(images))
    return opened, images


CASES = {
    "vit": ("vit", Method(), 16, {}),
    "vit_without_bias": ("vit", Method(), 16, {"qkv_bias": False, "proj_bias": False}),
    "vit_median": ("vit", Method(statistic="median"), 16, {"qk_norm": True, "init_values": 0.5}),
    "swin": ("swin", Method(), 32, {}),
    "swin_without_bias": ("swin", Method(), 32, {"qkv_bias": False}),
    "swin_padded": ("swin", Method(), 40, {}),
    "swin_padded_median": ("swin", Method(statistic="median"), 36, {}),
    "swin_reductions": ("swin", repq(), 40, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_whole_network_is_unchanged(case: str) -> None:
    family, method, size, changes = CASES[case]
    opened, images = open_in_double(family, method, size, **changes)
    before = opened.model(images)
    assert opened.pairs
    for pair in opened.pairs:
        reparameterize(pair, method.statistic, method.round_zero_point)
    assert relative_change(opened.model(images), before) < EXACT
    assert relative_change(opened.walk(images), before) < EXACT


def test_whole_network_changes_with_a_fractional_zero_point() -> None:
    for family, size in (("vit", 16), ("swin", 40)):
        opened, images = open_in_double(family, Method(), size)
        before = opened.model(images)
        for pair in opened.pairs:
            reparameterize(pair, "mean", round_zero_point=False)
        assert relative_change(opened.model(images), before) > 1e-2


def test_zero_padding_after_the_fold_would_be_wrong() -> None:
    """What published detection code does: the pad stays zero."""
    opened, images = open_in_double("swin", Method(), 40)
    before = opened.model(images)
    for pair in opened.pairs:
        reparameterize(pair)
    for layer in opened.model.layers:
        for block in layer.blocks:
            block.pad_value.zero_()
    assert relative_change(opened.model(images), before) > 1e-2


def test_padding_is_folded_after_the_network_has_moved() -> None:
    """Moving a network (here to another type, in Lightning to an accelerator) replaces its buffers."""
    opened, images = open_in_double("swin", Method(), 40)
    opened.model.float().double()
    before = opened.model(images)
    for pair in opened.pairs:
        reparameterize(pair)
    assert all(bool((block.pad_value != 0).any()) for layer in opened.model.layers for block in layer.blocks)
    assert relative_change(opened.model(images), before) < EXACT


def test_float_network_in_single_precision_changes_little() -> None:
    images = image_batch(40)
    opened = open_quantized(tiny_swin(img_size=40), Bits(), Method())
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.model(images))
    switch(opened.model, weights=False, activations=False)
    before = opened.model(images)
    for pair in opened.pairs:
        pair.linear.input_quantizer.enabled = False
        reparameterize(pair)
    assert relative_change(opened.model(images), before) < EXACT
