"""The ten rules of arithmetic in whole networks, one test (or a few that start with the rule's name) for each.

What rules 1 and 3 to 7 ask of a number format alone is checked by ``tests/quantizers/formats/test_conformance*.py``.
"""

import copy
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import (
    OpenedNetwork,
    calibrate_activations,
    open_by_specs,
    open_float,
    quantizers,
    specs_of,
    switch,
)
from isvit_lightning.networks.swin import QuantSwinBlock
from isvit_lightning.quantizers import Log, PerChannel, PerTensor, Quantizer, Role, Sulq, Uniform
from isvit_lightning.recipe import Bits, Recipe, read_recipe
from isvit_lightning.search import Percentiles
from isvit_lightning.search.percentiles import ACTIVATION_PERCENTILES
from isvit_lightning.stages import Fold
from isvit_lightning.transforms import fold, is_foldable
from tests.helpers import (
    DEFAULT_BITS,
    DEFAULT_RECIPE,
    LOG_SEARCH,
    QUANTIZERS,
    double_precision,
    fold_all,
    image_batch,
    quantized_network,
    quantizer_of,
    relative_change,
    samples_for,
    tiny_swin,
    tiny_vit,
)


def log2_and_medians() -> Recipe:
    """The default with log2 for attention probabilities, and with medians of the grids of all channels."""
    steps = [replace(step, statistic="median") if isinstance(step, Fold) else step for step in DEFAULT_RECIPE.steps]
    probabilities = replace(DEFAULT_RECIPE.placement.attn_prob, format=Log(), search=LOG_SEARCH)
    return replace(DEFAULT_RECIPE, steps=steps, placement=replace(DEFAULT_RECIPE.placement, attn_prob=probabilities))


BITS = pytest.mark.parametrize("bits", range(2, 9))
NETWORKS = {"vit": (tiny_vit, 16), "swin": (tiny_swin, 32), "swin_padded": (lambda: tiny_swin(img_size=40), 40)}
FAMILY = pytest.mark.parametrize("family", NETWORKS)
RECIPES = {
    "default": DEFAULT_RECIPE,
    "published": read_recipe("isvit_published"),
    "repq": read_recipe("repq"),
    "round_to_nearest": read_recipe("round_to_nearest"),
    "log2": log2_and_medians(),
}
EVERY_RECIPE = pytest.mark.parametrize("recipe", RECIPES)
Statistic = Literal["mean", "median"]


def with_ranges(opened: OpenedNetwork, images: torch.Tensor) -> OpenedNetwork:
    """``opened`` with ranges of activations chosen on ``images``; weights are float."""
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.model(images))
    return opened


# Rule 1 ---------------------------------------------------------------------------------------------------------------


@BITS
def test_rule_1_holds_at_calibration(bits: int) -> None:
    """The range that was searched has ``n_codes - 1`` steps, neither more nor fewer."""
    samples = torch.rand(500, dtype=torch.float64)
    uniform = quantizer_of(bits=bits).double()
    uniform.calibrate(samples)
    spans = [torch.quantile(samples, p).item() for p in ACTIVATION_PERCENTILES]
    assert any(uniform.scale.item() * (2**bits - 1) == pytest.approx(span, rel=1e-9) for span in spans)
    for extra in (0, 1):
        sulq = quantizer_of(Sulq(extra), bits).double()
        sulq.calibrate(samples)
        span = torch.log2(samples.max() + sulq.eta) - torch.log2(samples.min() + sulq.eta)
        assert sulq.step.item() * (2**bits + extra - 1) == pytest.approx(span.item(), rel=1e-9)


@FAMILY
@EVERY_RECIPE
def test_rule_1_in_networks(family: str, recipe: str) -> None:
    build, size = NETWORKS[family]
    opened = quantized_network(build(), image_batch(size), Bits(weight=3, activation=5), RECIPES[recipe])
    for quantizer in quantizers(opened.model).values():
        extra = 1 if recipe == "published" and quantizer.role == Role.ATTN_PROB else 0
        assert quantizer.n_codes == 2**quantizer.bits + extra
        assert quantizer.bits == (3 if quantizer.role.weight else 5)


# Rule 2 ---------------------------------------------------------------------------------------------------------------


def assert_zero_points_are_codes(network: nn.Module) -> int:
    """Every zero point below ``network``, per channel too, is whole and a code; returns how many there are."""
    count = 0
    for name, quantizer in quantizers(network).items():
        if isinstance(quantizer.format, Uniform):
            zero_point = quantizer.zero_point
            assert torch.equal(zero_point, zero_point.round()), name
            assert float(zero_point.min()) >= 0, name
            assert float(zero_point.max()) <= 2**quantizer.bits - 1, name
            count += zero_point.numel()
    assert count > 0
    return count


@FAMILY
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize("recipe", ["default", "repq"])
def test_rule_2_zero_points_are_codes_before_and_after_the_fold(
    family: str, bits: int, statistic: Statistic, recipe: str
) -> None:
    build, size = NETWORKS[family]
    opened = quantized_network(build(), image_batch(size), Bits(bits, bits), RECIPES[recipe], folded=False)
    before = assert_zero_points_are_codes(opened.model)
    readers = [wire.readers[0] for wire in opened.wires if is_foldable(wire)]
    # Patch merging too, where the recipe gives it a grid by channel.
    merging = [wire for wire in opened.wires if wire.name.endswith("reduction")]
    assert len(opened.wires) - len(readers) == (len(merging) if recipe == "default" else 0)
    for reader in readers:
        assert reader.input_quantizer.granularity == PerChannel(reader.in_features)
    fold_all(opened, Fold(statistic=statistic))
    after = assert_zero_points_are_codes(opened.model)
    assert after == before - sum(reader.in_features - 1 for reader in readers)


@given(st.integers(2, 8), st.floats(-50, 50), st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_rule_2_zero_points_are_codes_wherever_the_values_lie(
    bits: int, shift: float, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples = (torch.randn(20, 6, generator=generator) + shift * torch.rand(6, generator=generator)) * spread
    for granularity in (PerTensor(), PerChannel(6)):
        quantizer = quantizer_of(bits=bits, granularity=granularity)
        quantizer.calibrate(samples)
        assert_zero_points_are_codes(quantizer)


@FAMILY
def test_rule_2_rounding_makes_the_fold_exact(family: str) -> None:
    build, size = NETWORKS[family]

    def largest_change(round_zero_point: bool) -> float:
        with double_precision():
            images = image_batch(size)
            opened = RECIPES["repq"].open(build(), Bits())
        with_ranges(opened, images)
        changes = []
        for wire in opened.wires:
            (reader,) = wire.readers
            features = torch.randn(2, 9, reader.in_features, dtype=torch.float64)
            before = reader(wire.norm(features))
            fold(wire, "mean", round_zero_point)
            changes.append(relative_change(reader(wire.norm(features)), before))
        return max(changes)

    assert largest_change(round_zero_point=True) < 1e-5
    assert largest_change(round_zero_point=False) > 1e-2


# Rule 3 ---------------------------------------------------------------------------------------------------------------


@FAMILY
@EVERY_RECIPE
def test_rule_3_in_networks(family: str, recipe: str) -> None:
    build, size = NETWORKS[family]
    images = image_batch(size)
    opened = quantized_network(build(), images, Bits(3, 3), RECIPES[recipe])
    checked: list[str] = []

    def check(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        assert isinstance(module, Quantizer)
        # The published fold leaves fractional zero points, which have no codes: the waiver of rule 2.
        if module.format.has_codes(module.grid):
            codes = module.encode(args[0])
            assert int(codes.min()) >= 0
            assert int(codes.max()) < module.n_codes
            assert torch.equal(module.decode(codes), output)
            assert torch.equal(module.format.reconstruct(output.clone(), module.grid, module.n_codes), output)
            checked.append(module.role.name)

    for quantizer in quantizers(opened.model).values():
        quantizer.register_forward_hook(check)
    opened.model(images)
    assert {"attn_prob", "query", "key", "value", "gelu_out", "head_in", "weight"} <= set(checked)


# Rule 4 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name != "sulq_published"])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_rule_4_calibration_scores_the_grid_that_forward_uses(name: str, bits: int) -> None:
    """No other candidate would have a smaller error in ``forward`` than the one that calibration chose.

    Except where the published search is reproduced: it uses ``2**b`` codes, its forward pass one more.
    """
    samples = samples_for(name, (2, 3, 20, 20)).double()
    chosen = QUANTIZERS[name](bits, PerTensor()).double()
    chosen.calibrate(samples)
    assert isinstance(chosen.search, Percentiles)
    errors = []
    for percentile in chosen.search.percentiles or ACTIVATION_PERCENTILES:
        for candidate in chosen.search.free or chosen.format.free:
            search = replace(chosen.search, percentiles=(percentile,), free=(candidate,))
            alone = Quantizer(chosen.spec, search).double()
            alone.calibrate(samples)
            errors.append(float((alone(samples) - samples).square().mean()))
    assert len(errors) >= 3
    assert float((chosen(samples) - samples).square().mean()) == pytest.approx(min(errors), rel=1e-9)


@FAMILY
def test_rule_4_weights_written_onto_their_grid_compute_the_same(family: str) -> None:
    """What packing relies on: decoded codes in place of the weights change no bit of the output."""
    build, size = NETWORKS[family]
    images = image_batch(size)
    opened = quantized_network(build(), images)
    before = opened.model(images)
    for name, quantizer in quantizers(opened.model).items():
        if quantizer.role.weight:
            weight = opened.model.get_parameter(name.removesuffix("_quantizer"))
            weight.copy_(quantizer.decode(quantizer.encode(weight)))
    assert torch.equal(opened.model(images), before)
    switch(opened.model, weights=False, activations=True)
    assert torch.equal(opened.model(images), before)


# Rule 5 ---------------------------------------------------------------------------------------------------------------


@FAMILY
@EVERY_RECIPE
@pytest.mark.parametrize("folded", [False, True])
def test_rule_5_state_dict_of_a_network_round_trips(family: str, recipe: str, folded: bool) -> None:
    build, size = NETWORKS[family]
    model, images = build(), image_batch(size)
    source = quantized_network(model, images, recipe=RECIPES[recipe], folded=folded)
    state = copy.deepcopy(source.model.state_dict())
    target = open_by_specs(model, specs_of(source.model), state)
    target.model.load_state_dict(state)
    assert torch.equal(target.model(images), source.model(images))
    if not folded:
        opened = RECIPES[recipe].open(model, DEFAULT_BITS)
        opened.model.load_state_dict(state)
        assert torch.equal(opened.model(images), source.model(images))


@FAMILY
def test_rule_5_nothing_is_created_in_forward(family: str) -> None:
    build, size = NETWORKS[family]
    opened = DEFAULT_RECIPE.open(build(), Bits())
    layout = {key: value.shape for key, value in opened.model.state_dict().items()}
    modules = [name for name, _ in opened.model.named_modules()]
    with_ranges(opened, image_batch(size))
    opened.model(image_batch(size))
    assert {key: value.shape for key, value in opened.model.state_dict().items()} == layout
    assert [name for name, _ in opened.model.named_modules()] == modules


# Rule 6 ---------------------------------------------------------------------------------------------------------------


@FAMILY
@EVERY_RECIPE
def test_rule_6_in_networks(family: str, recipe: str) -> None:
    """Each quantizer hands on its slope where what it reads is in its range, and nothing where it is not."""
    build, size = NETWORKS[family]
    opened = quantized_network(build(), image_batch(size), Bits(3, 3), RECIPES[recipe])
    read: dict[Quantizer, torch.Tensor] = {}
    for quantizer in quantizers(opened.model).values():
        quantizer.register_forward_pre_hook(lambda module, args: read.update({module: args[0].detach()}))
    opened.model(image_batch(size))
    assert set(read) == set(quantizers(opened.model).values())
    for quantizer, tensor in read.items():
        form, grid, last = quantizer.format, quantizer.grid, quantizer.n_codes - 1
        if not form.has_codes(grid):
            continue
        tensor.requires_grad_()
        incoming = torch.randn_like(tensor)
        (gradient,) = torch.autograd.grad(quantizer(tensor), tensor, incoming)
        codes = form.codes(tensor.detach(), grid)
        slope = form.slope(tensor.detach(), form.base(codes.clamp(0, last), grid), grid)
        expected = torch.where((codes >= 0) & (codes <= last), slope * incoming, torch.zeros_like(incoming))
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


# Rule 7 ---------------------------------------------------------------------------------------------------------------


@FAMILY
@EVERY_RECIPE
@pytest.mark.parametrize("value", [0.0, 1.0, -3e4])
def test_rule_7_constant_images_have_finite_grids(family: str, recipe: str, value: float) -> None:
    build, size = NETWORKS[family]
    images = torch.full((2, 3, size, size), value)
    opened = quantized_network(build(), images, recipe=RECIPES[recipe])
    for name, quantizer in quantizers(opened.model).items():
        assert quantizer.calibrated, name
    assert bool(opened.model(images).isfinite().all())


@FAMILY
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rule_7_images_that_are_no_numbers_are_an_error(family: str, bad: float) -> None:
    build, size = NETWORKS[family]
    images = image_batch(size)
    images[1, 2, 3, 4] = bad
    with pytest.raises(IsvitError, match=r"Cannot calibrate qkv_in: the activation holds NaN or infinity"):
        with_ranges(DEFAULT_RECIPE.open(build(), Bits()), images)


def test_rule_7_weights_of_zeros_have_finite_grids() -> None:
    model = tiny_vit()
    model.blocks[0].mlp.fc1.weight.data.zero_()
    opened = quantized_network(model, image_batch())
    assert bool(opened.model(image_batch()).isfinite().all())


# Rule 8 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 5), (4, 10, 5), (2, 4, 5, 5)])
def test_rule_8_channels_are_the_last_axis_of_tokens_of_any_rank(shape: tuple[int, ...]) -> None:
    spread = 10.0 ** torch.arange(5)
    tokens = torch.randn(shape) * spread
    quantizer = quantizer_of(granularity=PerChannel(5))
    quantizer.calibrate(tokens)
    flat = quantizer_of(granularity=PerChannel(5))
    flat.calibrate(tokens.reshape(-1, 5))
    assert torch.equal(quantizer.scale, flat.scale)
    assert bool((quantizer.scale[1:] > quantizer.scale[:-1]).all())
    assert torch.equal(quantizer(tokens), flat(tokens.reshape(-1, 5)).view(shape))


@FAMILY
def test_rule_8_in_networks(family: str) -> None:
    build, size = NETWORKS[family]
    opened = RECIPES["repq"].open(build(), Bits())
    seen: dict[str, int] = {}
    for name, quantizer in quantizers(opened.model).items():
        if isinstance(quantizer.granularity, PerChannel) and not quantizer.role.weight:
            assert quantizer.granularity.axis == -1

            def record(module: nn.Module, args: tuple[torch.Tensor], name: str = name) -> None:
                assert isinstance(module, Quantizer)
                assert isinstance(module.granularity, PerChannel)
                assert args[0].shape[-1] == module.granularity.size
                seen[name] = args[0].dim()

            quantizer.register_forward_pre_hook(record)
        if quantizer.role.weight:
            weight = opened.model.get_parameter(name.removesuffix("_quantizer"))
            assert quantizer.granularity == PerChannel(weight.shape[0], axis=-weight.dim())
    with_ranges(opened, image_batch(size))
    # Swin's fully connected layers and reductions read channels-last maps, its windows and ViT's blocks tokens.
    assert set(seen.values()) == ({3} if family == "vit" else {3, 4})


# Rule 9 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_rule_9_opened_networks_are_in_evaluation_mode(family: str) -> None:
    rates = {"drop_path_rate": 0.9, "drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5}
    model = (tiny_vit if family == "vit" else tiny_swin)(**rates).train()
    images = image_batch(NETWORKS[family][1])
    quantized = DEFAULT_RECIPE.open(model, Bits())
    switch(quantized.model, weights=False, activations=False)
    assert model.training
    float_network = open_float(model)
    for opened in (quantized, float_network):
        assert torch.equal(opened.model(images), opened.model(images))
        assert torch.equal(opened.walk(images), opened.walk(images))
    torch.testing.assert_close(quantized.model(images), float_network.model(images), rtol=1e-4, atol=1e-5)
    calibrated_network = quantized_network(copy.deepcopy(model).train(), images)
    assert torch.equal(calibrated_network.walk(images), calibrated_network.walk(images))
    for opened in (quantized, float_network):
        assert not any(module.training for module in opened.model.modules())
        assert not any(module.training for unit in opened.units for module in unit.module.modules())


# Rule 10 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_rule_10_padding_is_the_folded_zero(statistic: Statistic) -> None:
    with double_precision():
        model, images = tiny_swin(img_size=40), image_batch(40)
        opened = DEFAULT_RECIPE.open(model, Bits())
    with_ranges(opened, images)
    before = opened.model(images)
    wires = [wire for wire in opened.wires if is_foldable(wire)]
    grids = {wire.name: copy.deepcopy(wire.readers[0].input_quantizer) for wire in wires}
    fold_all(opened, Fold(statistic=statistic))
    padded = [wire for wire in wires if wire.padded is not None]
    assert [wire.name for wire in padded] == [wire.name for wire in wires if wire.name.endswith("qkv")]
    for wire in padded:
        block, old, new = opened.model.get_submodule(wire.unit), grids[wire.name], wire.readers[0].input_quantizer
        assert isinstance(block, QuantSwinBlock)
        assert wire.pad_value is block.pad_value
        zeros = torch.zeros(wire.readers[0].in_features)
        expected = new.scale * (old.zero_point - new.zero_point)
        torch.testing.assert_close(block.pad_value, expected, rtol=1e-12, atol=1e-12)
        # The padded token takes the very code that an original zero took.
        assert torch.equal(new.encode(block.pad_value), old.encode(zeros.double()))
        assert bool((block.pad_value != 0).any())
    assert relative_change(opened.model(images), before) < 1e-5
