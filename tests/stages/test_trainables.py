"""Which tensors of a unit are tuned, and at which rates."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantLinear
from isvit_lightning.networks import quantizers, switch
from isvit_lightning.quantizers import PerChannel, Role
from isvit_lightning.recipe import Choice
from isvit_lightning.stages import NoWeights, StraightThrough
from isvit_lightning.stages.trainables import UnitTrainables, scale_groups, trainable_parameters
from tests.helpers import (
    DEFAULT_BITS,
    DEFAULT_RECIPE,
    image_batch,
    quantized_network,
    quantizer_of,
    tiny_swin,
    tiny_vit,
)


def names_of(module: nn.Module, tensors: list[torch.Tensor]) -> list[str]:
    wanted = {id(tensor) for tensor in tensors}
    return [name for name, parameter in module.named_parameters() if id(parameter) in wanted]


def test_a_vit_block_trains_eight_tensors() -> None:
    block = DEFAULT_RECIPE.open(tiny_vit(), DEFAULT_BITS).units[1].module
    trained = trainable_parameters(block)
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert len(trained) == 8
    assert set(names_of(block, trained)) == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def test_a_swin_block_trains_the_position_bias_table_too() -> None:
    units = DEFAULT_RECIPE.open(tiny_swin(), DEFAULT_BITS).units
    for unit in units:
        trained = names_of(unit.module, trainable_parameters(unit.module))
        if "blocks" in unit.name:
            assert len(trained) == 9
            assert "attn.relative_position_bias_table" in trained
        else:
            assert trained == (["weight"] if "reduction" in unit.name else ["weight", "bias"])


@pytest.mark.parametrize("build", [tiny_vit, tiny_swin], ids=["vit", "swin"])
def test_rates_are_relative_to_the_size_of_each_weight_and_shared_by_its_bias(build: Any) -> None:
    for unit in DEFAULT_RECIPE.open(build(), DEFAULT_BITS).units:
        groups = StraightThrough(0.25).of(unit.module, compiled=False).groups
        for group in groups:
            values = group.tensors[0].flatten().tolist()
            size = math.sqrt(sum(value**2 for value in values) / len(values))
            assert group.rate == pytest.approx(0.25 * size, rel=1e-5)
            assert group.floor is None
            assert len({tensor.shape[0] for tensor in group.tensors}) == 1
        found = [tensor for group in groups for tensor in group.tensors]
        assert [id(tensor) for tensor in found] == [id(tensor) for tensor in trainable_parameters(unit.module)]


def test_a_rate_that_is_not_relative_holds_for_all_weights() -> None:
    block = DEFAULT_RECIPE.open(tiny_vit(), DEFAULT_BITS).units[1].module
    (group,) = StraightThrough(4e-5, relative=False).of(block, compiled=False).groups
    assert (len(group.tensors), group.rate) == (8, 4e-5)


@pytest.mark.parametrize("rate", [0.0, -1e-3, math.nan])
def test_rates_that_are_not_positive_are_refused(rate: float) -> None:
    with pytest.raises(IsvitError, match=f"model.recipe has trainables with a rate of {rate}, expected a positive one"):
        StraightThrough(rate)


def test_weights_are_quantized_once_a_step_where_their_quantizers_are_on() -> None:
    network = quantized_network(tiny_vit(), image_batch())
    block = network.units[1].module
    weights = StraightThrough().of(block, compiled=False).weights
    assert names_of(block, [weight.tensor for weight in weights]) == [
        f"{layer}.weight" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    for weight in weights:
        assert weight.quantizer.role == Role.WEIGHT
        assert torch.equal(weight.quantize(), weight.quantizer(weight.tensor))
    assert StraightThrough().of(block, compiled=True).weights == []
    switch(block, weights=False, activations=True)
    assert StraightThrough().of(block, compiled=False).weights == []


def test_layers_without_a_weight_quantizer_are_tuned_but_not_quantized() -> None:
    layer = QuantLinear(nn.Linear(3, 2), quantizer_of(), None)
    trained = StraightThrough().of(layer, compiled=False)
    assert trained.weights == []
    assert [id(tensor) for tensor in trained.groups[0].tensors] == [id(layer.weight), id(layer.bias)]


def test_no_weights_are_tuned_by_choice() -> None:
    block = DEFAULT_RECIPE.open(tiny_vit(), DEFAULT_BITS).units[1].module
    trained = NoWeights().of(block, compiled=False)
    assert (trained.groups, trained.weights) == ([], [])
    assert (NoWeights().trains_weights, StraightThrough().trains_weights) == (False, True)


def test_nothing_is_added_to_the_loop_by_default() -> None:
    assert UnitTrainables([]).penalty(0.5) is None


def test_scales_of_weights_and_of_channels_are_not_learned() -> None:
    network = quantized_network(tiny_vit(), image_batch(), folded=False)
    block = network.units[1].module
    found = {id(tensor) for group in scale_groups(block, 1e-2) for tensor in group.tensors}
    learned = [q for q in quantizers(block).values() if any(id(number) in found for number in q.grid)]
    assert {quantizer.role.name for quantizer in learned} == {"query", "key", "value", "proj_in", "gelu_out"}
    assert len(found) == 5
    switch(network.model, weights=True, activations=False)
    assert scale_groups(block, 1e-2) == []


def test_each_scale_has_a_rate_and_a_floor_of_its_own() -> None:
    block = quantized_network(tiny_vit(), image_batch()).units[1].module
    groups = scale_groups(block, 0.2)
    # Behind the fold those of the norms are learned too.
    assert len(groups) == 7
    for group in groups:
        (scale,) = group.tensors
        assert group.rate == pytest.approx(0.2 * float(scale))
        assert group.floor is not None
        assert float(group.floor) == pytest.approx(float(scale) / 10)
    assert scale_groups(block, 0.0) == []


def test_the_input_of_a_norm_is_learned_too() -> None:
    placement = replace(DEFAULT_RECIPE.placement, norm_in=Choice())
    network = quantized_network(tiny_vit(), image_batch(), recipe=replace(DEFAULT_RECIPE, placement=placement))
    block = network.units[1].module
    found = {id(tensor) for group in scale_groups(block, 1e-2) for tensor in group.tensors}
    assert {id(block.norm1.input_quantizer.scale), id(block.norm2.input_quantizer.scale)} <= found


def test_per_channel_scales_have_no_group() -> None:
    layer = QuantLinear(nn.Linear(3, 2), quantizer_of(granularity=PerChannel(3)), None)
    layer.input_quantizer.calibrate(torch.randn(9, 3))
    assert scale_groups(layer, 1e-2) == []
