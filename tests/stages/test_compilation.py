"""Compiled units: no graph breaks, the same values, and a sentence where there is no compiler."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

from benchmarks.kills import QUICKSTART
from isvit_lightning.cli import main
from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import Unit, quantizers
from isvit_lightning.quantizers import Role, UniformQuantizer
from isvit_lightning.recipe.method import Method
from isvit_lightning.stages import Schedule
from isvit_lightning.stages.compilation import callable_of, require_compiler
from isvit_lightning.stages.tuning import trainable_parameters, trainable_scales
from tests.helpers import image_batch, quantized_network, tiny_swin, tiny_vit
from tests.stages.fitting import TUNED, changed, make_stage, run, snapshot

UNITS = {
    "block": (Method(), True, "blocks.0"),
    "block, per channel and log2": (Method(softmax="log2"), False, "blocks.0"),
    "shifted window": (Method(), True, "layers.0.blocks.1"),
}
"""Methods, whether stage 2 is done, and a unit."""


def entered(kind: str) -> tuple[Unit, torch.Tensor]:
    """A calibrated unit whose tensors are tuned, and inputs."""
    method, stage2, name = UNITS[kind]
    model, images = (tiny_swin(), image_batch(32, 4)) if name.startswith("layers") else (tiny_vit(), image_batch(16, 4))
    opened = quantized_network(model, images, method=method, stage2=stage2)
    value = images
    for unit in opened.units:
        with torch.no_grad():
            value = unit.enter(value)
            if unit.name == name:
                break
            value = unit.module(value)
    for tensor in trainable_parameters(unit.module) + trainable_scales(unit.module):
        tensor.requires_grad_(True)
    return unit, value


def gradients(unit: Unit) -> list[torch.Tensor]:
    tensors = trainable_parameters(unit.module) + trainable_scales(unit.module)
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
    compiled = torch.compile(callable_of(unit.module, compiles=False), backend="aot_eager", fullgraph=True)
    got = compiled(inputs)
    got.square().sum().backward()
    assert torch.equal(got, expected)
    assert all(torch.equal(*pair) for pair in zip(gradients(unit), slopes, strict=True))
    per_channel = [q for q in quantizers(unit.module).values() if isinstance(q, UniformQuantizer) and q.scale.dim()]
    assert any(q.role is not Role.WEIGHT for q in per_channel) is ("per channel" in kind)


def test_more_units_than_torch_keeps_forms_of_one_function() -> None:
    inputs, graphs = torch.randn(2, 3), []

    def backend(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    for number in range(12):
        layer = torch.nn.Linear(3, number + 1)
        run = callable_of(layer, compiles=True, backend=backend)
        assert torch.equal(run(inputs), layer(inputs))
        # Where torch gives up, a function runs uncompiled without a word.
        assert len(graphs) == number + 1


@pytest.mark.parametrize("title", TUNED)
def test_a_stage_whose_units_are_compiled_ends_with_the_same_bits(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend that needs no C++ compiler and computes what the unit computes."""
    # Eight images of sixteen: the groups of every step are equally large, so that one form of a unit does.
    states, model, images, graphs = [], tiny_vit(), image_batch(16, 16), []

    def backend(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, examples)

    monkeypatch.setattr("isvit_lightning.stages.tuning.callable_of", partial(callable_of, backend=backend))
    for compiles in (False, True):
        stage = make_stage(title, model, images, Schedule(2, 8, compile_units=compiles))
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
