"""Stage 2: the fold is exact in float64 with a whole zero point, and only then."""

import copy
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantLinear
from isvit_lightning.networks import OpenedNetwork, Wire, calibrate_activations, switch
from isvit_lightning.quantizers import PerChannel, PerTensor, Quantizer, Role, Search, Spec, Sulq, Uniform
from isvit_lightning.recipe import Bits, Recipe, read_recipe
from isvit_lightning.search import Percentiles
from isvit_lightning.stages import Fold
from isvit_lightning.transforms import fold, is_foldable
from tests.helpers import (
    DEFAULT_RECIPE,
    double_precision,
    fold_all,
    image_batch,
    quantizer_of,
    relative_change,
    tiny_swin,
    tiny_vit,
)

Statistic = Literal["mean", "median", "mad"]
STATISTIC = pytest.mark.parametrize("statistic", ["mean", "median", "mad"])
BITS = pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])

EXACT = 1e-5
"""Largest relative change of the next layer's output that DESIGN.md allows."""


def make_wire(bits: int = 4, bias: bool = True, search: Search | None = None) -> tuple[Wire, torch.Tensor]:
    """A float64 wire of 12 channels with uneven ranges, calibrated, and inputs of its norm; the weight stays float."""
    norm = nn.LayerNorm(12).double()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(12).exp())
        norm.bias.copy_(torch.randn(12) * 2)
    linear = nn.Linear(12, 9, bias=bias).double()
    quantizer = quantizer_of(None, bits, PerChannel(12), Role.QKV_IN, search).double()
    weight_quantizer = quantizer_of(None, bits, PerChannel(9, axis=-2), Role.WEIGHT).double()
    layer = QuantLinear(linear, quantizer, weight_quantizer)
    weight_quantizer.enabled = False
    tokens = torch.randn(8, 30, 12, dtype=torch.float64)
    quantizer.calibrate(norm(tokens))
    return Wire("attn.qkv", "block", norm, (layer,)), tokens


def reader_of(wire: Wire) -> QuantLinear:
    """The one layer that reads the norm."""
    (reader,) = wire.readers
    assert isinstance(reader, QuantLinear)
    return reader


def quantizer_before(wire: Wire) -> Quantizer:
    """Quantizer of the reader's input."""
    quantizer = reader_of(wire).input_quantizer
    assert quantizer is not None
    return quantizer


def output(wire: Wire, tokens: torch.Tensor) -> torch.Tensor:
    """What the next layer computes."""
    return reader_of(wire)(wire.norm(tokens))


@BITS
@STATISTIC
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("include_zero", [True, False])
def test_whole_zero_point_is_exact(bits: int, statistic: Statistic, bias: bool, include_zero: bool) -> None:
    wire, tokens = make_wire(bits, bias, Percentiles(include_zero=include_zero))
    before = output(wire, tokens)
    fold(wire, statistic)
    assert relative_change(output(wire, tokens), before) < EXACT


def test_outlier_channels_do_not_drag_the_robust_statistics() -> None:
    scales = {}
    for statistic in ("mean", "median", "mad"):
        torch.manual_seed(0)
        wire, _ = make_wire()
        quantizer_before(wire).scale[3] = 1000.0
        quantizer_before(wire).scale[7] = 500.0
        fold(wire, statistic)  # type: ignore[arg-type]
        scales[statistic] = quantizer_before(wire).scale.item()
    assert scales["mean"] > 100
    assert max(scales["median"], scales["mad"]) < 10
    assert scales["median"] != scales["mad"]


def test_equal_channels_have_their_own_scale() -> None:
    for statistic in ("mean", "median", "mad"):
        wire, _ = make_wire()
        quantizer_before(wire).scale.fill_(0.5)
        fold(wire, statistic)  # type: ignore[arg-type]
        assert quantizer_before(wire).scale.item() == 0.5


@BITS
def test_fractional_zero_point_is_not_exact(bits: int) -> None:
    wire, tokens = make_wire(bits)
    before = output(wire, tokens)
    fold(wire, "mean", round_zero_point=False)
    zero_point = quantizer_before(wire).zero_point
    assert zero_point.item() != round(zero_point.item())
    # The published fold moves every grid by a part of a step: as large as the quantization error itself.
    assert relative_change(output(wire, tokens), before) > 0.3 / 2**bits
    with pytest.raises(IsvitError, match="round_zero_point"):
        quantizer_before(wire).encode(wire.norm(tokens))


@STATISTIC
def test_norm_and_linear_against_the_equations(statistic: Statistic) -> None:
    """Equations 15 and 16, element by element."""
    wire, _ = make_wire()
    quantizer = quantizer_before(wire)
    scale, zero = quantizer.scale.tolist(), quantizer.zero_point.tolist()
    gamma, beta = wire.norm.weight.tolist(), wire.norm.bias.tolist()
    weight, bias = reader_of(wire).weight.tolist(), reader_of(wire).bias.tolist()
    fold(wire, statistic)

    # torch's median of an even count is the lower one.
    distance = [abs(one - sorted(scale)[5]) for one in scale]
    near = [i for i in range(12) if statistic != "mad" or distance[i] <= 3 * sorted(distance)[5]]

    def middle(values: list[float]) -> float:
        return sorted(values)[5] if statistic == "median" else sum(values[i] for i in near) / len(near)

    new_scale, new_zero = middle(scale), float(round(middle(zero)))
    assert quantizer_before(wire).scale.item() == pytest.approx(new_scale, rel=1e-12)
    assert quantizer_before(wire).zero_point.item() == new_zero
    for i in range(12):
        r1, r2 = scale[i] / new_scale, zero[i] - new_zero
        assert wire.norm.weight[i].item() == pytest.approx(gamma[i] / r1, rel=1e-12)
        assert wire.norm.bias[i].item() == pytest.approx((beta[i] + scale[i] * r2) / r1, rel=1e-10)
        for j in range(9):
            assert reader_of(wire).weight[j, i].item() == pytest.approx(r1 * weight[j][i], rel=1e-12)
    for j in range(9):
        moved = sum(scale[i] * (zero[i] - new_zero) * weight[j][i] for i in range(12))
        assert reader_of(wire).bias[j].item() == pytest.approx(bias[j] - moved, rel=1e-10, abs=1e-12)


def test_float_function_of_the_wire_is_unchanged() -> None:
    wire, tokens = make_wire()
    quantizer_before(wire).enabled = False
    before = output(wire, tokens)
    fold(wire)
    assert relative_change(output(wire, tokens), before) < 1e-12


def test_codes_move_by_the_shift_of_their_zero_point() -> None:
    wire, tokens = make_wire()
    old = quantizer_before(wire)
    steps = old.encode(wire.norm(tokens)) - old.zero_point
    low, high = -old.zero_point, 15 - old.zero_point
    fold(wire)
    new = quantizer_before(wire)
    codes = new.encode(wire.norm(tokens))
    inside = (steps > low) & (steps < high)
    assert torch.equal((steps + old.zero_point)[inside], codes[inside].double())


def test_new_quantizer_is_per_tensor_and_keeps_the_rest() -> None:
    wire, _ = make_wire(3)
    old = quantizer_before(wire)
    fold(wire)
    new = quantizer_before(wire)
    assert new is not old
    assert (new.granularity, new.scale.shape, new.zero_point.shape) == (PerTensor(), (), ())
    assert (new.format, new.bits, new.role, new.search) == (Uniform(), 3, Role.QKV_IN, old.search)
    assert new.calibrated
    assert new.enabled
    assert new.scale.dtype == torch.float64
    assert 0 <= new.zero_point.item() <= 7


def test_zero_point_is_clamped_to_a_code() -> None:
    for value, expected in ((40.0, 7.0), (-40.0, 0.0)):
        wire, tokens = make_wire(3)
        quantizer_before(wire).zero_point.fill_(value)
        quantizer_before(wire).refresh()
        before = output(wire, tokens)
        fold(wire)
        assert quantizer_before(wire).zero_point.item() == expected
        torch.testing.assert_close(output(wire, tokens), before)


def test_dead_channel_neither_explodes_nor_drags() -> None:
    wire, tokens = make_wire()
    with torch.no_grad():
        wire.norm.weight[3] = wire.norm.bias[3] = 0
    quantizer_before(wire).calibrate(wire.norm(tokens))
    before = output(wire, tokens)
    fold(wire)
    assert all(bool(p.isfinite().all()) for p in (*wire.norm.parameters(), *reader_of(wire).parameters()))
    assert relative_change(output(wire, tokens), before) < EXACT


def test_made_bias_is_a_parameter_without_gradient() -> None:
    wire, _ = make_wire(bias=False)
    assert reader_of(wire).bias is None
    fold(wire)
    assert isinstance(reader_of(wire).bias, nn.Parameter)
    assert not reader_of(wire).bias.requires_grad
    assert "bias" in reader_of(wire).state_dict()


def test_a_quantizer_that_is_off_stays_off() -> None:
    wire, _ = make_wire()
    quantizer_before(wire).enabled = False
    fold(wire)
    assert not quantizer_before(wire).enabled


def test_only_a_single_reader_with_a_uniform_grid_by_channel_is_foldable() -> None:
    wire, _ = make_wire()
    reader = reader_of(wire)
    assert is_foldable(wire)
    fold(wire)
    assert not is_foldable(wire), "folded already"
    for granularity, form, expected in (
        (PerChannel(12), Uniform(), True),
        (PerTensor(), Uniform(), False),
        (PerChannel(30, axis=-2), Uniform(), False),
        (PerChannel(12), Sulq(), False),
    ):
        reader.input_quantizer = Quantizer(Spec(form, 4, granularity, Role.QKV_IN))
        assert is_foldable(wire) is expected
    reader.input_quantizer = Quantizer(Spec(Uniform(), 4, PerChannel(12), Role.QKV_IN))
    assert not is_foldable(replace(wire, readers=(reader, reader)))
    assert not is_foldable(replace(wire, readers=(nn.Linear(12, 9),)))
    reader.input_quantizer = None
    assert not is_foldable(wire)


def test_uncalibrated_wire_is_refused_and_left_whole() -> None:
    wire, tokens = make_wire()
    reader_of(wire).input_quantizer = quantizer_of(granularity=PerChannel(12), role=Role.QKV_IN).double()
    with pytest.raises(IsvitError, match="calibrated"):
        fold(wire)
    assert bool(wire.norm(tokens).isfinite().all())
    assert bool(reader_of(wire).weight.isfinite().all())


def open_in_double(family: str, recipe: Recipe, size: int, **changes: object) -> tuple[OpenedNetwork, torch.Tensor]:
    """A float64 network with calibrated activations and float weights, before stage 2."""
    with double_precision():
        model = tiny_vit(img_size=size, **changes) if family == "vit" else tiny_swin(img_size=size, **changes)
        images = image_batch(size, count=4)
        opened = recipe.open(model, Bits())
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.model(images))
    return opened, images


MEDIAN = Fold(statistic="median")
CASES = {
    "vit": ("vit", DEFAULT_RECIPE, Fold(), 16, {}),
    "vit_without_bias": ("vit", DEFAULT_RECIPE, Fold(), 16, {"qkv_bias": False, "proj_bias": False}),
    "vit_median": ("vit", DEFAULT_RECIPE, MEDIAN, 16, {"qk_norm": True, "init_values": 0.5}),
    "swin": ("swin", DEFAULT_RECIPE, Fold(), 32, {}),
    "swin_without_bias": ("swin", DEFAULT_RECIPE, Fold(), 32, {"qkv_bias": False}),
    "swin_padded": ("swin", DEFAULT_RECIPE, Fold(), 40, {}),
    "swin_padded_median": ("swin", DEFAULT_RECIPE, MEDIAN, 36, {}),
    "swin_reductions": ("swin", read_recipe("repq"), Fold(), 40, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_whole_network_is_unchanged(case: str) -> None:
    family, recipe, choice, size, changes = CASES[case]
    opened, images = open_in_double(family, recipe, size, **changes)
    before = opened.model(images)
    foldable = {"vit": 4, "swin": 9 if case == "swin_reductions" else 8}[family]
    assert sum(map(is_foldable, opened.wires)) == foldable
    fold_all(opened, choice)
    assert not any(map(is_foldable, opened.wires))
    assert relative_change(opened.model(images), before) < EXACT
    assert relative_change(opened.walk(images), before) < EXACT


def test_whole_network_changes_with_a_fractional_zero_point() -> None:
    for family, size in (("vit", 16), ("swin", 40)):
        opened, images = open_in_double(family, DEFAULT_RECIPE, size)
        before = opened.model(images)
        fold_all(opened, Fold(round_zero_point=False))
        assert relative_change(opened.model(images), before) > 1e-2


def test_zero_padding_after_the_fold_would_be_wrong() -> None:
    """What published detection code does: the pad stays zero."""
    opened, images = open_in_double("swin", DEFAULT_RECIPE, 40)
    before = opened.model(images)
    fold_all(opened)
    for layer in opened.model.layers:
        for block in layer.blocks:
            block.pad_value.zero_()
    assert relative_change(opened.model(images), before) > 1e-2


def test_padding_is_folded_after_the_network_has_moved() -> None:
    """Moving a network (here to another type, in Lightning to an accelerator) replaces its buffers."""
    opened, images = open_in_double("swin", DEFAULT_RECIPE, 40)
    opened.model.float().double()
    before = opened.model(images)
    fold_all(opened)
    assert all(bool((block.pad_value != 0).any()) for layer in opened.model.layers for block in layer.blocks)
    assert relative_change(opened.model(images), before) < EXACT


def test_float_network_in_single_precision_changes_little() -> None:
    images = image_batch(40)
    opened = DEFAULT_RECIPE.open(tiny_swin(img_size=40), Bits())
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.model(images))
    switch(opened.model, weights=False, activations=False)
    before = opened.model(images)
    fold_all(opened)
    assert relative_change(opened.model(images), before) < EXACT


@pytest.mark.parametrize("left", ["weight", "nothing"])
@STATISTIC
def test_a_norm_without_affine_part_or_bias_gets_them(left: str, statistic: Statistic) -> None:
    """As if it had had ones and zeros, and exactly."""
    wire, tokens = make_wire()
    with torch.no_grad():
        wire.norm.bias.zero_()
        if left == "nothing":
            wire.norm.weight.fill_(1)
    reader_of(wire).input_quantizer.calibrate(wire.norm(tokens))  # type: ignore[union-attr]
    bare = copy.deepcopy(wire)
    bare.norm.register_parameter("bias", None)
    if left == "nothing":
        bare.norm.register_parameter("weight", None)
    outputs = []
    for each in (wire, bare):
        before = reader_of(each)(each.norm(tokens))
        fold(each, statistic)
        outputs.append(reader_of(each)(each.norm(tokens)))
        assert relative_change(outputs[-1], before) < 1e-12
    assert torch.equal(*outputs)
    assert torch.equal(bare.norm.weight, wire.norm.weight)
    assert torch.equal(bare.norm.bias, wire.norm.bias)
    assert not bare.norm.bias.requires_grad
    assert bare.norm.elementwise_affine
