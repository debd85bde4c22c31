"""The ten rules of arithmetic, one test (or a few that start with the rule's name) for each."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import calibrate_activations, open_float, open_quantized, quantizers, switch
from isvit_lightning.networks.swin import QuantSwinBlock
from isvit_lightning.quantizers import PerChannel, PerTensor, Quantizer, Role, SulqQuantizer, UniformQuantizer
from isvit_lightning.recipe.method import Bits, Method, repq, round_to_nearest
from isvit_lightning.stages.reparameterize import reparameterize
from tests.helpers import (
    GRANULARITIES,
    PROBABILITIES,
    QUANTIZERS,
    double_precision,
    image_batch,
    quantized_network,
    relative_change,
    samples_for,
    tiny_swin,
    tiny_vit,
)

BY_NAME = pytest.mark.parametrize("name", QUANTIZERS)
BITS = pytest.mark.parametrize("bits", range(2, 9))
NETWORKS = {"vit": (tiny_vit, 16), "swin": (tiny_swin, 32), "swin_padded": (lambda: tiny_swin(img_size=40), 40)}
FAMILY = pytest.mark.parametrize("family", NETWORKS)
METHODS = {
    "default": Method(),
    "published": Method(
        eta_candidates="published", extra_softmax_codes=1, clamp_zero_points=False, round_zero_point=False
    ),
    "repq": repq(),
    "round_to_nearest": round_to_nearest(),
    "log2": Method(softmax="log2", statistic="median"),
}
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)


@st.composite
def calibrated(draw: st.DrawFn, names: tuple[str, ...] = tuple(QUANTIZERS)) -> tuple[Quantizer, torch.Tensor]:
    """A calibrated quantizer of any type, width and granularity, and a tensor for it that also leaves its range."""
    name, bits = draw(st.sampled_from(names)), draw(st.integers(2, 8))
    granularity, shape = GRANULARITIES[draw(st.sampled_from(sorted(GRANULARITIES)))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    samples = torch.randn(shape, generator=generator)
    if name in PROBABILITIES:
        samples = (samples * draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))).softmax(dim=-1)
        special = st.floats(0, 1, width=32)
    else:
        samples = (samples + draw(st.floats(-2, 2))) * 10.0 ** draw(st.integers(-6, 4))
        special = st.floats(-1e6, 1e6, width=32)
    quantizer = QUANTIZERS[name](bits, granularity)
    quantizer.calibrate(samples)
    tensor = samples.clone()
    flat = tensor.view(-1)
    # Far outside, tiny, zero, and whatever else hypothesis comes up with.
    flat[0], flat[1], flat[2] = 3 * samples.max(), 3 * samples.min(), 0.0
    for index, value in enumerate(draw(st.lists(special, max_size=6))):
        flat[3 + index] = value
    return quantizer, tensor


# Rule 1 ---------------------------------------------------------------------------------------------------------------


@BY_NAME
@BITS
def test_rule_1_b_bits_means_2_to_the_b_codes(name: str, bits: int) -> None:
    extra = 1 if name == "sulq_published" else 0
    samples = samples_for(name, (4, 3, 40, 40))
    quantizer = QUANTIZERS[name](bits, PerTensor())
    quantizer.calibrate(samples)
    # A waiver shows in the result.
    assert quantizer.n_codes == 2**bits + extra
    assert f"{2**bits + extra} codes" in repr(quantizer)
    dense = torch.linspace(float(samples.min()) - 1, float(samples.max()) + 1, 50_000)
    dense = dense.clamp(min=0) if name in PROBABILITIES else dense
    codes = quantizer.encode(dense)
    assert (int(codes.min()), int(codes.max())) == (0, quantizer.n_codes - 1)
    assert quantizer(dense).unique().numel() <= quantizer.n_codes
    if isinstance(quantizer, UniformQuantizer):
        assert torch.equal(codes.unique(), torch.arange(2**bits))
        assert quantizer(dense).unique().numel() == 2**bits


@BITS
def test_rule_1_holds_at_calibration(bits: int) -> None:
    """The range that was searched has ``n_codes - 1`` steps, neither more nor fewer."""
    samples = torch.rand(500, dtype=torch.float64)
    uniform = UniformQuantizer(bits).double()
    uniform.calibrate(samples)
    spans = [torch.quantile(samples, p).item() for p in uniform.search.percentiles]
    assert any(uniform.scale.item() * (2**bits - 1) == pytest.approx(span, rel=1e-9) for span in spans)
    for extra in (0, 1):
        sulq = SulqQuantizer(bits, extra_codes=extra).double()
        sulq.calibrate(samples)
        span = torch.log2(samples.max() + sulq.eta) - torch.log2(samples.min() + sulq.eta)
        assert sulq.step.item() * (2**bits + extra - 1) == pytest.approx(span.item(), rel=1e-9)


@FAMILY
@EVERY_METHOD
def test_rule_1_in_networks(family: str, method: str) -> None:
    build, size = NETWORKS[family]
    opened = quantized_network(build(), image_batch(size), Bits(weight=3, activation=5), METHODS[method])
    for quantizer in quantizers(opened.model).values():
        extra = 1 if method == "published" and quantizer.role is Role.ATTN_PROB else 0
        assert quantizer.n_codes == 2**quantizer.bits + extra
        assert quantizer.bits == (3 if quantizer.role is Role.WEIGHT else 5)


# Rule 2 ---------------------------------------------------------------------------------------------------------------


def assert_zero_points_are_codes(network: nn.Module) -> int:
    """Every zero point below ``network``, per channel too, is whole and a code; returns how many there are."""
    count = 0
    for name, quantizer in quantizers(network).items():
        if isinstance(quantizer, UniformQuantizer):
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
def test_rule_2_zero_points_are_codes_before_and_after_stage_2(family: str, bits: int, statistic: str) -> None:
    build, size = NETWORKS[family]
    method = Method(statistic=statistic)  # type: ignore[arg-type]
    opened = quantized_network(build(), image_batch(size), Bits(bits, bits), method, stage2=False)
    before = assert_zero_points_are_codes(opened.model)
    for pair in opened.pairs:
        assert pair.linear.input_quantizer.granularity == PerChannel(pair.linear.in_features)
        reparameterize(pair, method.statistic, method.round_zero_point)
    after = assert_zero_points_are_codes(opened.model)
    assert after == before - sum(pair.linear.in_features - 1 for pair in opened.pairs)


@given(st.integers(2, 8), st.floats(-50, 50), st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_rule_2_zero_points_are_codes_wherever_the_values_lie(
    bits: int, shift: float, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples = (torch.randn(20, 6, generator=generator) + shift * torch.rand(6, generator=generator)) * spread
    for granularity in (PerTensor(), PerChannel(6)):
        quantizer = UniformQuantizer(bits, granularity)
        quantizer.calibrate(samples)
        assert_zero_points_are_codes(quantizer)


@FAMILY
def test_rule_2_rounding_makes_the_fold_exact(family: str) -> None:
    build, size = NETWORKS[family]

    def largest_change(round_zero_point: bool) -> float:
        with double_precision():
            images = image_batch(size)
            opened = open_quantized(build(), Bits(), Method())
        switch(opened.model, weights=False, activations=True)
        calibrate_activations(opened.model, lambda: opened.model(images))
        changes = []
        for pair in opened.pairs:
            features = torch.randn(2, 9, pair.linear.in_features, dtype=torch.float64)
            before = pair.linear(pair.norm(features))
            reparameterize(pair, "mean", round_zero_point)
            changes.append(relative_change(pair.linear(pair.norm(features)), before))
        return max(changes)

    assert largest_change(round_zero_point=True) < 1e-5
    assert largest_change(round_zero_point=False) > 1e-2


# Rule 3 ---------------------------------------------------------------------------------------------------------------


@given(calibrated())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_rule_3_decode_of_encode_is_forward_and_a_second_pass_changes_nothing(
    drawn: tuple[Quantizer, torch.Tensor],
) -> None:
    quantizer, tensor = drawn
    codes, values = quantizer.encode(tensor), quantizer(tensor)
    assert codes.dtype == torch.int32
    assert codes.shape == tensor.shape
    assert int(codes.min()) >= 0
    assert int(codes.max()) < quantizer.n_codes
    assert torch.equal(quantizer.decode(codes), values)
    assert torch.equal(quantizer(values), values)
    assert torch.equal(quantizer.decode(quantizer.encode(values)), values)


@given(calibrated(("uniform", "log_sqrt2", "log2")))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_rule_3_every_code_is_found_again(drawn: tuple[Quantizer, torch.Tensor]) -> None:
    """Where no two codes share a value, ``encode`` inverts ``decode``: what is packed can be unpacked and repacked."""
    quantizer, tensor = drawn
    codes = quantizer.encode(tensor)
    values = quantizer.decode(codes)
    normal = (values == 0) | (values.abs() > 1e-37) if isinstance(quantizer, UniformQuantizer) else values > 1e-37
    assert torch.equal(quantizer.encode(values)[normal], codes[normal])


@FAMILY
@EVERY_METHOD
def test_rule_3_in_networks(family: str, method: str) -> None:
    build, size = NETWORKS[family]
    images = image_batch(size)
    opened = quantized_network(build(), images, Bits(3, 3), METHODS[method])
    checked: list[str] = []

    def check(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        assert isinstance(module, Quantizer)
        zero_point = getattr(module, "zero_point", torch.zeros(()))
        # The published fold leaves fractional zero points, which have no codes: the waiver of rule 2.
        if torch.equal(zero_point, zero_point.round()):
            codes = module.encode(args[0])
            assert int(codes.min()) >= 0
            assert int(codes.max()) < module.n_codes
            assert torch.equal(module.decode(codes), output)
            assert torch.equal(module.fake_quantize(output), output)
            checked.append(module.role.value)

    for quantizer in quantizers(opened.model).values():
        quantizer.register_forward_hook(check)
    opened.model(images)
    assert {"attn_prob", "query", "key", "value", "gelu_out", "head_in", "weight"} <= set(checked)


# Rule 4 ---------------------------------------------------------------------------------------------------------------


@BY_NAME
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_rule_4_calibration_scores_the_grid_that_forward_uses(name: str, bits: int) -> None:
    """No other candidate would have a smaller error in ``forward`` than the one that calibration chose."""
    samples = samples_for(name, (2, 3, 20, 20)).double()

    def error_of(quantizer: Quantizer) -> float:
        return float((quantizer(samples) - samples).square().mean())

    def build() -> Quantizer:
        return QUANTIZERS[name](bits, PerTensor()).double()

    chosen = build()
    chosen.calibrate(samples)
    if name == "sulq_published":
        # The published search uses 2**b codes, its forward pass 2**b + 1: the exception that `n_codes` shows.
        assert chosen.n_codes == 2**bits + 1
        return
    errors = []
    for option in ("etas", "percentiles"):
        for candidate in getattr(chosen, option, ()):
            alone = build()
            setattr(alone, option, (candidate,))
            alone.calibrate(samples)
            errors.append(error_of(alone))
    if isinstance(chosen, UniformQuantizer):
        for candidate in chosen.search.percentiles:
            search = type(chosen.search)((candidate,), chosen.search.include_zero)
            alone = UniformQuantizer(bits, search=search).double()
            alone.calibrate(samples)
            errors.append(error_of(alone))
    assert len(errors) >= 3
    assert error_of(chosen) == pytest.approx(min(errors), rel=1e-9)


@given(calibrated())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_rule_4_decode_lists_the_grid_of_forward(drawn: tuple[Quantizer, torch.Tensor]) -> None:
    quantizer, tensor = drawn
    shape = quantizer.granularity.shape
    codes = torch.arange(quantizer.n_codes).view(-1, *(1 for _ in shape)).expand(-1, *shape)
    grid = quantizer.decode(codes).view(quantizer.n_codes, -1, 1)
    values = quantizer.granularity.group(quantizer(tensor))
    assert bool((values == grid).any(dim=0).all())


@FAMILY
def test_rule_4_weights_written_onto_their_grid_compute_the_same(family: str) -> None:
    """What packing relies on: decoded codes in place of the weights change no bit of the output."""
    build, size = NETWORKS[family]
    images = image_batch(size)
    opened = quantized_network(build(), images)
    before = opened.model(images)
    for name, quantizer in quantizers(opened.model).items():
        if quantizer.role is Role.WEIGHT:
            weight = opened.model.get_parameter(name.removesuffix("_quantizer"))
            weight.copy_(quantizer.decode(quantizer.encode(weight)))
    assert torch.equal(opened.model(images), before)
    switch(opened.model, weights=False, activations=True)
    assert torch.equal(opened.model(images), before)


# Rule 5 ---------------------------------------------------------------------------------------------------------------


@BY_NAME
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_rule_5_state_dict_round_trips(name: str, granularity: str) -> None:
    chosen, shape = GRANULARITIES[granularity]
    samples = samples_for(name, shape)
    source, target = QUANTIZERS[name](3, chosen), QUANTIZERS[name](3, chosen)
    layout = {key: value.shape for key, value in source.state_dict().items()}
    source.calibrate(samples)
    source(samples)
    assert {key: value.shape for key, value in source.state_dict().items()} == layout
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    assert target.calibrated
    assert torch.equal(target(samples), source(samples))
    assert torch.equal(target.encode(samples), source.encode(samples))
    assert torch.equal(target(samples * 0.7), source(samples * 0.7))


@FAMILY
@EVERY_METHOD
@pytest.mark.parametrize("stage2", [False, True])
def test_rule_5_state_dict_of_a_network_round_trips(family: str, method: str, stage2: bool) -> None:
    build, size = NETWORKS[family]
    model, images = build(), image_batch(size)
    source = quantized_network(model, images, method=METHODS[method], stage2=stage2)
    target = open_quantized(model, Bits(), METHODS[method], deployed=stage2)
    target.model.load_state_dict(copy.deepcopy(source.model.state_dict()))
    assert torch.equal(target.model(images), source.model(images))


@FAMILY
def test_rule_5_nothing_is_created_in_forward(family: str) -> None:
    build, size = NETWORKS[family]
    opened = open_quantized(build(), Bits(), Method())
    layout = {key: value.shape for key, value in opened.model.state_dict().items()}
    modules = [name for name, _ in opened.model.named_modules()]
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.model(image_batch(size)))
    opened.model(image_batch(size))
    assert {key: value.shape for key, value in opened.model.state_dict().items()} == layout
    assert [name for name, _ in opened.model.named_modules()] == modules


@BY_NAME
@pytest.mark.parametrize("use", ["forward", "encode", "decode"])
def test_rule_5_an_uncalibrated_quantizer_raises_when_used(name: str, use: str) -> None:
    quantizer = QUANTIZERS[name](4, PerTensor())
    tensor = torch.zeros(3, dtype=torch.int32) if use == "decode" else torch.rand(3)
    with pytest.raises(IsvitError, match="calibrated"):
        getattr(quantizer, use)(tensor)


# Rule 6 ---------------------------------------------------------------------------------------------------------------


@given(calibrated(("uniform", "sulq", "sulq_published_etas", "sulq_published", "log2", "log_sqrt2")))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_rule_6_gradients_have_their_closed_form(drawn: tuple[Quantizer, torch.Tensor]) -> None:
    quantizer, tensor = drawn
    quantizer.double()
    tensor = tensor.double().requires_grad_()
    incoming = torch.linspace(-1, 2, tensor.numel(), dtype=torch.float64).view(tensor.shape)
    values = quantizer(tensor)
    values.backward(incoming)
    x, x_hat = tensor.detach(), values.detach()
    if isinstance(quantizer, UniformQuantizer):
        code = (x / quantizer.scale).round() + quantizer.zero_point
        slope = torch.ones_like(x)
    elif isinstance(quantizer, SulqQuantizer):
        code = ((torch.log2(x + quantizer.eta) - quantizer.offset) / quantizer.step).round()
        slope = (x_hat + quantizer.eta) / (x + quantizer.eta)
    else:
        code = (-quantizer.steps_per_octave * torch.log2(x / quantizer.get_buffer("scale"))).round()
        slope = x_hat / x
    inside = (code >= 0) & (code <= quantizer.n_codes - 1)
    expected = torch.where(inside, slope * incoming, torch.zeros_like(x))
    torch.testing.assert_close(tensor.grad, expected, rtol=1e-9, atol=1e-12)


# Rule 7 ---------------------------------------------------------------------------------------------------------------


@BY_NAME
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 1e-6, 1e-30, 5e4])
def test_rule_7_constant_has_a_finite_grid(name: str, granularity: str, value: float) -> None:
    chosen, shape = GRANULARITIES[granularity]
    quantizer = QUANTIZERS[name](4, chosen)
    samples = torch.full(shape, value)
    for sign in (1, -1) if name not in PROBABILITIES else (1,):
        quantizer.calibrate(sign * samples)
        assert quantizer.calibrated
        values = quantizer(sign * samples)
        assert bool(values.isfinite().all())
        if name not in PROBABILITIES:
            # Documented: the range runs from zero to the value, so both are on the grid.
            torch.testing.assert_close(values, sign * samples, rtol=1e-6, atol=0)


@BY_NAME
def test_rule_7_constant_channel_among_others_is_finite(name: str) -> None:
    samples = samples_for(name, (2, 7, 5))
    for value in (0.0, 0.25):
        samples[..., 2] = value
        quantizer = QUANTIZERS[name](4, PerChannel(5))
        quantizer.calibrate(samples)
        assert all(bool(buffer.isfinite().all()) for buffer in quantizer.buffers())
        assert bool(quantizer(samples).isfinite().all())


@BY_NAME
@pytest.mark.parametrize("shape", [(0,), (0, 7, 5), (2, 0, 5)])
def test_rule_7_empty_is_an_error(name: str, shape: tuple[int, ...]) -> None:
    for granularity in (PerTensor(), PerChannel(5)):
        quantizer = QUANTIZERS[name](4, granularity)
        with pytest.raises(IsvitError, match=r"empty tensor.*data\.calibration_images"):
            quantizer.calibrate(torch.zeros(shape))
        assert not quantizer.calibrated


@BY_NAME
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rule_7_nan_and_infinity_are_errors(name: str, bad: float) -> None:
    samples = samples_for(name, (2, 7, 5))
    samples[1, 3, 2] = bad
    for granularity in (PerTensor(), PerChannel(5)):
        quantizer = QUANTIZERS[name](4, granularity)
        with pytest.raises(IsvitError, match=rf"{quantizer.role.value}.*NaN or infinity"):
            quantizer.calibrate(samples)
        assert not quantizer.calibrated


@pytest.mark.parametrize("name", PROBABILITIES)
def test_rule_7_negative_samples_of_a_logarithm_are_an_error(name: str) -> None:
    """Their logarithm is NaN, and no candidate survives it."""
    quantizer = QUANTIZERS[name](4, PerTensor())
    with pytest.raises(IsvitError, match="attn_prob"):
        quantizer.calibrate(torch.linspace(-3, 1, 50))


@BY_NAME
def test_rule_7_calibrated_quantizer_shows_nan_and_clips_infinity(name: str) -> None:
    samples = samples_for(name, (2, 7, 5))
    quantizer = QUANTIZERS[name](4, PerTensor())
    quantizer.calibrate(samples)
    values = quantizer(torch.tensor([torch.nan, torch.inf]))
    assert bool(values[0].isnan())
    assert values[1].item() == quantizer(torch.tensor([1e30])).item()


# Rule 8 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 5), (4, 10, 5), (2, 4, 5, 5)])
def test_rule_8_channels_are_the_last_axis_of_tokens_of_any_rank(shape: tuple[int, ...]) -> None:
    spread = 10.0 ** torch.arange(5)
    tokens = torch.randn(shape) * spread
    quantizer = UniformQuantizer(4, PerChannel(5))
    quantizer.calibrate(tokens)
    flat = UniformQuantizer(4, PerChannel(5))
    flat.calibrate(tokens.reshape(-1, 5))
    assert torch.equal(quantizer.scale, flat.scale)
    assert bool((quantizer.scale[1:] > quantizer.scale[:-1]).all())
    assert torch.equal(quantizer(tokens), flat(tokens.reshape(-1, 5)).view(shape))


@FAMILY
def test_rule_8_in_networks(family: str) -> None:
    build, size = NETWORKS[family]
    opened = open_quantized(build(), Bits(), repq())
    seen: dict[str, int] = {}
    for name, quantizer in quantizers(opened.model).items():
        if isinstance(quantizer.granularity, PerChannel) and quantizer.role is not Role.WEIGHT:
            assert quantizer.granularity.axis == -1

            def record(module: nn.Module, args: tuple[torch.Tensor], name: str = name) -> None:
                assert isinstance(module, Quantizer)
                assert isinstance(module.granularity, PerChannel)
                assert args[0].shape[-1] == module.granularity.size
                seen[name] = args[0].dim()

            quantizer.register_forward_pre_hook(record)
        if quantizer.role is Role.WEIGHT:
            weight = opened.model.get_parameter(name.removesuffix("_quantizer"))
            assert quantizer.granularity == PerChannel(weight.shape[0], axis=-weight.dim())
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.model(image_batch(size)))
    # Swin's fully connected layers and reductions read channels-last maps, its windows and ViT's blocks tokens.
    assert set(seen.values()) == ({3} if family == "vit" else {3, 4})


# Rule 9 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_rule_9_opened_networks_are_in_evaluation_mode(family: str) -> None:
    rates = {"drop_path_rate": 0.9, "drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5}
    model = (tiny_vit if family == "vit" else tiny_swin)(**rates).train()
    images = image_batch(NETWORKS[family][1])
    quantized = open_quantized(model, Bits(), Method())
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
def test_rule_10_padding_is_the_folded_zero(statistic: str) -> None:
    method = Method(statistic=statistic)  # type: ignore[arg-type]
    with double_precision():
        model, images = tiny_swin(img_size=40), image_batch(40)
        opened = open_quantized(model, Bits(), method)
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.model(images))
    before = opened.model(images)
    grids = {pair.name: copy.deepcopy(pair.linear.input_quantizer) for pair in opened.pairs}
    for pair in opened.pairs:
        reparameterize(pair, method.statistic)
    for pair in opened.pairs:
        if not pair.name.endswith("qkv"):
            continue
        block, old, new = opened.model.get_submodule(pair.unit), grids[pair.name], pair.linear.input_quantizer
        assert isinstance(block, QuantSwinBlock)
        zeros = torch.zeros(pair.linear.in_features)
        expected = new.scale * (old.zero_point - new.zero_point)
        torch.testing.assert_close(block.pad_value, expected, rtol=1e-12, atol=1e-12)
        # The padded token takes the very code that an original zero took.
        assert torch.equal(new.encode(block.pad_value), old.encode(zeros.double()))
        assert bool((block.pad_value != 0).any())
    assert relative_change(opened.model(images), before) < 1e-5
