"""Which quantizer goes where: section 1.2 of the method page."""

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks.factory import QuantizerFactory
from isvit_lightning.quantizers import (
    LogQuantizer,
    PerChannel,
    PerTensor,
    RangeSearch,
    Role,
    SulqQuantizer,
    UniformQuantizer,
)
from isvit_lightning.quantizers.search import ACTIVATION_PERCENTILES, TOKEN_PERCENTILES, WEIGHT_PERCENTILES
from isvit_lightning.quantizers.sulq import POWER_OF_TWO_ETAS, PUBLISHED_ETAS
from isvit_lightning.recipe.method import Bits, Method, repq, round_to_nearest

ACTIVATIONS = [role for role in Role if role not in (Role.WEIGHT, Role.ATTN_PROB)]


DEFAULT = Method()


def build(method: Method = DEFAULT, deployed: bool = False) -> QuantizerFactory:
    """Factory with different bits for weights (3) and activations (5)."""
    return QuantizerFactory(Bits(weight=3, activation=5), method, deployed)


@pytest.mark.parametrize("role", ACTIVATIONS)
def test_activation_of_each_role(role: Role) -> None:
    quantizer = build().activation(role, 8)
    assert isinstance(quantizer, UniformQuantizer)
    assert quantizer.role is role
    assert (quantizer.bits, quantizer.n_codes) == (5, 32)
    per_channel = role in (Role.QKV_IN, Role.FC1_IN)
    assert quantizer.search == RangeSearch(
        ACTIVATION_PERCENTILES if per_channel else TOKEN_PERCENTILES, True, not per_channel
    )
    assert quantizer.granularity == (PerChannel(8) if per_channel else PerTensor())


@pytest.mark.parametrize("role", ACTIVATIONS)
def test_everything_is_per_tensor_when_deployed_or_without_stage_2(role: Role) -> None:
    assert build(deployed=True).activation(role, 8).granularity == PerTensor()
    assert build(Method(reparameterize=False)).activation(role, 8).granularity == PerTensor()
    assert build(repq(), deployed=True).activation(role, 8).granularity == PerTensor()


@pytest.mark.parametrize("role", ACTIVATIONS)
def test_errors_of_ranges_count_per_token_only_for_inputs_of_linear_layers_and_by_option(role: Role) -> None:
    published = RangeSearch(ACTIVATION_PERCENTILES)
    for quantizer in (
        build().activation(role),
        build(Method(range_error="squared")).activation(role, 8),
        build(round_to_nearest()).activation(role, 8),
        build(repq()).activation(role, 8),
    ):
        assert isinstance(quantizer, UniformQuantizer)
        assert quantizer.search == published


def test_reductions_are_per_channel_by_option() -> None:
    assert build(repq()).activation(Role.REDUCTION_IN, 8).granularity == PerChannel(8)
    both_off = Method(reparameterize_reductions=True, reparameterize=False)
    assert build(both_off).activation(Role.REDUCTION_IN, 8).granularity == PerTensor()


@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 2, 2)])
def test_weight_is_per_output_channel(shape: tuple[int, ...]) -> None:
    weight = nn.Parameter(torch.randn(shape))
    quantizer = build().weight(weight)
    assert isinstance(quantizer, UniformQuantizer)
    assert (quantizer.bits, quantizer.role) == (3, Role.WEIGHT)
    assert quantizer.search.percentiles == WEIGHT_PERCENTILES
    assert quantizer.scale.shape == (6, *(1 for _ in shape[1:]))
    quantizer.calibrate(weight)
    assert quantizer(weight).shape == shape


def test_softmax_by_method() -> None:
    default = build().activation(Role.ATTN_PROB)
    assert isinstance(default, SulqQuantizer)
    assert (default.etas, default.bits, default.n_codes) == (POWER_OF_TWO_ETAS, 5, 32)
    published = build(Method(eta_candidates="published", extra_softmax_codes=1)).activation(Role.ATTN_PROB)
    assert isinstance(published, SulqQuantizer)
    assert (published.etas, published.n_codes) == (PUBLISHED_ETAS, 33)
    assert isinstance(build(round_to_nearest()).activation(Role.ATTN_PROB), UniformQuantizer)
    for softmax, steps in (("log2", 1), ("log_sqrt2", 2)):
        quantizer = build(Method(softmax=softmax)).activation(Role.ATTN_PROB)  # type: ignore[arg-type]
        assert isinstance(quantizer, LogQuantizer)
        assert (quantizer.steps_per_octave, quantizer.bits) == (steps, 5)


@pytest.mark.parametrize("softmax", ["sulq", "uniform", "log2", "log_sqrt2"])
def test_every_softmax_quantizer_has_the_role_and_one_grid(softmax: str) -> None:
    quantizer = build(Method(softmax=softmax)).activation(Role.ATTN_PROB, 8)  # type: ignore[arg-type]
    assert quantizer.role is Role.ATTN_PROB
    assert quantizer.granularity == PerTensor()


def test_zero_points_are_clamped_by_method() -> None:
    for clamped in (True, False):
        factory = build(Method(clamp_zero_points=clamped))
        for quantizer in (factory.activation(Role.GELU_OUT), factory.weight(nn.Parameter(torch.randn(2, 2)))):
            assert isinstance(quantizer, UniformQuantizer)
            assert quantizer.search.include_zero is clamped


def test_products_have_their_roles() -> None:
    scores, context = build().scores(), build().context()
    assert (scores.left_quantizer.role, scores.right_quantizer.role) == (Role.QUERY, Role.KEY)
    assert (context.left_quantizer.role, context.right_quantizer.role) == (Role.ATTN_PROB, Role.VALUE)


def test_deployed_pair_without_bias_has_room_for_the_folded_one() -> None:
    for role, expected in ((Role.QKV_IN, True), (Role.PROJ_IN, False)):
        layer = build(deployed=True).linear(nn.Linear(4, 6, bias=False), role)
        assert (layer.bias is not None) is expected
    assert build().linear(nn.Linear(4, 6, bias=False), Role.QKV_IN).bias is None
    bias = build(deployed=True).linear(nn.Linear(4, 6, bias=False), Role.QKV_IN).bias
    assert bias.tolist() == [0.0] * 6
    assert not bias.requires_grad


def test_convolution_has_no_input_quantizer() -> None:
    layer = build().conv(nn.Conv2d(3, 6, 2))
    assert [name for name, _ in layer.named_children()] == ["weight_quantizer"]


def test_a_part_of_a_detector_has_its_own_bits() -> None:
    factory = QuantizerFactory(Bits(3, 5, parts={"box_head": 8}), DEFAULT)
    layer = factory.of("box_head").linear(nn.Linear(4, 2), Role.BOX_HEAD_IN)
    assert (layer.weight_quantizer.bits, layer.input_quantizer.bits) == (8, 8)
    layer = factory.of("neck").linear(nn.Linear(4, 2), Role.NECK_IN)
    assert (layer.weight_quantizer.bits, layer.input_quantizer.bits) == (3, 5)
    assert factory.bits.of("neck").parts == {}


def test_a_convolution_that_reads_no_image_has_an_input_quantizer() -> None:
    conv = build().conv(nn.Conv2d(4, 2, 1), Role.RPN_IN)
    assert conv.input_quantizer is not None
    assert (conv.input_quantizer.bits, conv.input_quantizer.role) == (5, Role.RPN_IN)
    assert isinstance(conv.input_quantizer.granularity, PerTensor)
    assert build().conv(nn.Conv2d(3, 2, 1)).input_quantizer is None


def test_bits_of_a_part_lie_between_2_and_8() -> None:
    with pytest.raises(IsvitError, match=r"model.bits.parts.neck is 9, expected 2 to 8"):
        Bits(parts={"neck": 9})
