"""Layers that are rounded one after another: when, on what, and what is tuned in between."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantConv2d
from isvit_lightning.networks import SINGLE, quantizers
from isvit_lightning.stages import Inputs, RoundInTurn, Schedule, Tune, TuningStage
from isvit_lightning.stages.in_turn import input_moment
from isvit_lightning.stages.losses import Surroundings
from isvit_lightning.stages.passes import Held
from isvit_lightning.stages.trainables import quantized_layers
from tests.helpers import image_batch, tiny_swin, tiny_vit
from tests.stages.fitting import STAGE3, EachStep, make_stage, run, snapshot

CHOICE = replace(STAGE3, inputs=Inputs("quantized"), trainables=RoundInTurn())
STEPS = 20


def stage_of(build: Any = tiny_vit, size: int = 16, steps: int = STEPS, choice: Tune = CHOICE) -> TuningStage:
    return make_stage(choice, build(), image_batch(size, 8), Schedule(steps, 4))


def on_grid(layer: Any) -> bool:
    """Whether a weight is the grid's own value everywhere; a switched off quantizer is asked all the same."""
    quantizer = layer.weight_quantizer
    return torch.equal(quantizer.decode(quantizer.encode(layer.weight)), layer.weight)


@pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_all_weights_are_on_their_grids_in_the_end(build: Any, size: int, steps: int) -> None:
    stage = run(stage_of(build, size, steps))
    layers = [layer for layer in quantized_layers(stage.network) if layer.weight_quantizer is not None]
    assert len(layers) == sum(quantizer.role.weight for quantizer in quantizers(stage.network).values())
    for layer in layers:
        assert on_grid(layer)
        assert layer.weight_quantizer.enabled
        assert torch.equal(layer.weight_quantizer(layer.weight), layer.weight)


def test_layers_have_their_turn_in_order_and_rest_then() -> None:
    seen: list[list[torch.Tensor]] = []

    def look(stage: TuningStage, step: int) -> None:
        if stage.unit.name == "blocks.0":
            seen.append([layer.weight.detach().clone() for layer in quantized_layers(stage.unit.module)])

    run(stage_of(), EachStep(look, after=True))
    assert len(seen) == STEPS
    moved = [
        [not torch.equal(one, other) for one, other in zip(*pair, strict=True)] for pair in itertools.pairwise(seen)
    ]
    # Eight steps in float, then three for each turn; a layer moves for the last time when it is rounded.
    turns = [8, 11, 14, 17]
    assert moved == [[step <= turn for turn in turns] for step in range(1, STEPS)]


def test_biases_and_scales_are_tuned_to_the_end() -> None:
    before: dict[str, torch.Tensor] = {}

    def look(stage: TuningStage, step: int) -> None:
        if stage.unit.name == "blocks.0" and step == STEPS - 2:
            before.update(snapshot(stage.unit.module))

    stage = run(stage_of(), EachStep(look))
    after = stage.quantized.units[1].module.state_dict()
    names = {name for name in before if not torch.equal(before[name].nan_to_num(), after[name].nan_to_num())}
    biases = {"attn.qkv.bias", "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias"}
    assert biases <= names
    assert not {name for name in names if name.endswith(".weight")}
    assert "mlp.fc2.input_quantizer.scale" in names


def around(stage: TuningStage, inputs: torch.Tensor, rank: int = 0, processes: int = 1) -> Surroundings:
    unit, rows = stage.quantized.units[1], inputs[rank::processes]
    return Surroundings(
        unit,
        Held({SINGLE: rows}),
        torch.device("cpu"),
        lambda chosen: unit({SINGLE: rows[chosen]}),
        rank=rank,
        processes=processes,
        chunk=3,
    )


@pytest.mark.parametrize(("images", "used"), [(8, 8), (5, 5), (100, 8)])
def test_the_moment_is_that_of_the_quantized_inputs(images: int, used: int) -> None:
    stage = stage_of()
    stage.setup("fit")
    for quantizer in quantizers(stage.network).values():
        if quantizer.role.weight:
            quantizer.enabled = False
    inputs = torch.randn(8, 5, 16)
    block: Any = stage.quantized.units[1].module
    x = block.attn.qkv.input_quantizer(block.norm1(inputs[:used])).flatten(0, 1).double()
    moment = input_moment(block.attn.qkv, around(stage, inputs), images)
    assert moment is not None
    torch.testing.assert_close(moment, x.T @ x, rtol=1e-5, atol=1e-5)


def convolution(**arguments: Any) -> QuantConv2d:
    conv = nn.Conv2d(3, 4, **arguments).requires_grad_(False)
    return QuantConv2d(conv, None, None)


def test_patches_are_the_columns_of_a_convolution() -> None:
    layer, x = convolution(kernel_size=(2, 4), stride=(2, 4), bias=False), torch.randn(5, 3, 8, 8)
    moment = input_moment(layer, on(layer, x), 8)
    assert moment is not None
    weight = layer.weight.flatten(1).double()
    torch.testing.assert_close(
        (weight @ moment @ weight.T).trace(), layer(x).double().square().sum(), rtol=1e-5, atol=0
    )


def on(layer: nn.Module, x: torch.Tensor) -> Surroundings:
    return Surroundings(Any, Held({SINGLE: x}), torch.device("cpu"), lambda rows: {SINGLE: layer(x[rows])})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments", [{"kernel_size": 3}, {"kernel_size": 3, "stride": 3, "padding": 1}], ids=["overlapping", "padded"]
)
def test_patches_that_overlap_are_too_many(arguments: dict[str, Any]) -> None:
    layer = convolution(**arguments)
    assert input_moment(layer, on(layer, torch.randn(2, 3, 9, 9)), 8) is None


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"first": 0.0}, {"first": 1.0}, {"images": 0}, {"damping": 0.0}])
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(IsvitError, match=r"RoundInTurn has .*change trainables"):
        RoundInTurn(**wrong)
