"""Compiled units: no graph breaks, the same values, and a sentence where there is no compiler."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

from benchmarks.kills import QUICKSTART
from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import SINGLE, Unit, quantizers
from isvit_lightning.program import main
from isvit_lightning.quantizers import Log, Uniform
from isvit_lightning.recipe import Choice
from isvit_lightning.stages import Schedule, Tune
from isvit_lightning.stages.compilation import callable_of, require_compiler
from isvit_lightning.stages.trainables import scale_groups, trainable_parameters
from tests.helpers import DEFAULT_RECIPE, LOG_SEARCH, image_batch, quantized_network, tiny_swin, tiny_vit
from tests.stages.fitting import STAGE1, STAGE3, changed, make_stage, run, snapshot

LOG2 = replace(DEFAULT_RECIPE, placement=replace(DEFAULT_RECIPE.placement, attn_prob=Choice(Log(), search=LOG_SEARCH)))
UNITS = {
    "block": (DEFAULT_RECIPE, True, "blocks.0"),
    "block, per channel and log2": (LOG2, False, "blocks.0"),
    "shifted window": (DEFAULT_RECIPE, True, "layers.0.blocks.1"),
}
"""Recipes, whether the fold is done, and a unit."""


def tuned_tensors(unit: Unit) -> list[torch.Tensor]:
    scales = [tensor for group in scale_groups(unit.module, 1e-2) for tensor in group.tensors]
    return trainable_parameters(unit.module) + scales


def entered(kind: str) -> tuple[Unit, torch.Tensor]:
    """A calibrated unit whose tensors are tuned, and inputs."""
    recipe, folded, name = UNITS[kind]
    model, images = (tiny_swin(), image_batch(32, 4)) if name.startswith("layers") else (tiny_vit(), image_batch(16, 4))
    opened = quantized_network(model, images, recipe=recipe, folded=folded)
    value = images
    for unit in opened.units:
        with torch.no_grad():
            value = unit.enter(value)
            if unit.name == name:
                break
            value = unit.module(value)
    for tensor in tuned_tensors(unit):
        tensor.requires_grad_(True)
    return unit, value


def gradients(unit: Unit) -> list[torch.Tensor]:
    tensors = tuned_tensors(unit)
    found = [tensor.grad for tensor in tensors if tensor.grad is not None]
    assert len(found) == len(tensors)
    for tensor in tensors:
        tensor.grad = None
    return found


@pytest.mark.parametrize("kind", UNITS)
def test_units_are_one_graph_with_the_same_values_and_gradients(kind: str) -> None:
    unit, inputs = entered(kind)
    expected = unit.module(inputs)
    expected.square().sum().backward()
    slopes = gradients(unit)
    torch.compiler.reset()
    compiled = torch.compile(callable_of(unit, compiles=False), backend="aot_eager", fullgraph=True)
    got = compiled({SINGLE: inputs})[SINGLE]
    got.square().sum().backward()
    assert torch.equal(got, expected)
    assert all(torch.equal(*pair) for pair in zip(gradients(unit), slopes, strict=True))
    per_channel = [q for q in quantizers(unit.module).values() if q.format == Uniform() and q.scale.dim()]
    assert any(not q.role.weight for q in per_channel) is ("per channel" in kind)


def test_more_units_than_torch_keeps_forms_of_one_function() -> None:
    inputs, graphs = torch.randn(2, 3), []

    def backend(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    for number in range(12):
        layer = torch.nn.Linear(3, number + 1)
        run = callable_of(Unit("layer", layer, torch.nn.Identity()), compiles=True, backend=backend)
        assert torch.equal(run({SINGLE: inputs})[SINGLE], layer(inputs))
        # Where torch gives up, a function runs uncompiled without a word.
        assert len(graphs) == number + 1


@pytest.mark.parametrize("choice", [STAGE1, STAGE3], ids=["stage1", "stage3"])
def test_a_stage_whose_units_are_compiled_ends_with_the_same_bits(
    choice: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a backend that needs no C++ compiler and computes what the unit computes."""
    # Eight images of sixteen: the groups of every step are equally large, so that one form of a unit does.
    states, model, images, graphs = [], tiny_vit(), image_batch(16, 16), []

    def backend(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, examples)

    monkeypatch.setattr("isvit_lightning.stages.tuning.callable_of", partial(callable_of, backend=backend))
    for compiles in (False, True):
        stage = make_stage(choice, model, images, Schedule(2, 8, compile=compiles))
        stage.plan = [1, 2]
        run(stage)
        states.append(snapshot(stage.network))
        assert len(graphs) == (2 if compiles else 0)
    assert states[0].keys() == states[1].keys()
    assert changed(*states) == set()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_a_compiler_there_is_one_sentence(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++ -v")
    monkeypatch.setattr("isvit_lightning.stages.compilation.find_spec", lambda name: None)
    with pytest.raises(IsvitError, match=r"^Units cannot be compiled: .*, expected .* set model\.compile to false\.$"):
        require_compiler(device)


def test_the_command_line_tells_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("CXX", "/nowhere/g++")
    arguments = ["--model.compile", "true", "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", str(QUICKSTART), *arguments]) == 2
    assert capsys.readouterr().err.startswith("isvit: Units cannot be compiled: there is no C++ compiler /nowhere/g++")
    assert not (tmp_path / "run").exists()
