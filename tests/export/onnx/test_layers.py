"""Each layer in ONNX Runtime, against the layer in PyTorch."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from isvit_lightning.export.onnx.encoders import Encoder
from isvit_lightning.export.onnx.network import graph_network
from isvit_lightning.export.onnx.runner import session
from isvit_lightning.export.onnx.write import write_graph
from isvit_lightning.layers import QuantConv2d, QuantLayerNorm, QuantLinear, QuantMatMul
from isvit_lightning.quantizers import (
    AdaLog,
    AnchoredUniform,
    Format,
    Granularity,
    Log,
    PerChannel,
    Role,
    ShiftedLog,
    Sulq,
    Tangent,
    TwinUniform,
    per_head,
)
from tests.export.test_lower import TENSOR, draws, quantizer

pytestmark = pytest.mark.export
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def linear(x: torch.Tensor, bits: int = 4, form: Format | None = None, by: Granularity = TENSOR) -> QuantLinear:
    layer = nn.Linear(x.shape[-1], 24).requires_grad_(False)
    weight = quantizer(layer.weight, bits, by=PerChannel(24, axis=-2), role=Role.WEIGHT)
    return QuantLinear(layer, quantizer(x, bits, form, by), weight)


@dataclass(frozen=True)
class Case:
    """A layer and what it reads."""

    layer: nn.Module
    inputs: tuple[torch.Tensor, ...]


def convolution() -> Case:
    x, conv = draws(2, 4, 9, 9), nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2).requires_grad_(False)
    return Case(
        QuantConv2d(conv, quantizer(x), quantizer(conv.weight, by=PerChannel(8, axis=-4), role=Role.WEIGHT)), (x,)
    )


def product(left: Granularity, right: Granularity) -> Case:
    a, b = draws(2, 3, 16, 8), draws(2, 3, 8, 9)
    return Case(QuantMatMul(quantizer(a, by=left), quantizer(b, by=right)), (a, b))


def context(form: Format, by: Granularity = TENSOR, octaves: int | None = None) -> Case:
    a, b = (4 * draws(2, 3, 16, 20)).softmax(-1), draws(2, 3, 20, 8)
    left = quantizer(a, form=form, by=by, role=Role.ATTN_PROB)
    if octaves is not None:
        for name, number in (("eta", 2.0**-octaves), ("offset", -octaves), ("step", octaves / 15)):
            left.get_buffer(name).fill_(number)
        left.refresh()
    return Case(QuantMatMul(left, quantizer(b)), (a, b))


def cases() -> dict[str, Case]:
    shapes = {"tokens": (2, 9, 32), "matrix": (2, 32), "map": (2, 3, 3, 32)}
    affine = {
        f"linear_{bits}_{name}": Case(linear(x, bits), (x,))
        for bits in (2, 3, 4, 7, 8)
        for name, shape in shapes.items()
        for x in (draws(*shape) + 0.2,)
    }
    tail, tokens = draws(2, 9, 32).abs().pow(3), draws(2, 9, 32)
    steps = {
        f"linear_{type(form).__name__}": Case(linear(tail, 4, form), (tail,))
        for form in (Sulq(), Log(2), AdaLog(), ShiftedLog(), TwinUniform(), Tangent(), AnchoredUniform())
    }
    norm = QuantLayerNorm(nn.LayerNorm(32).requires_grad_(False), quantizer(tokens, 8))
    return {
        **affine,
        **steps,
        "linear_by_channel": Case(linear(tokens, by=PerChannel(32)), (tokens,)),
        "convolution": convolution(),
        "product": product(TENSOR, TENSOR),
        "product_by_head": product(per_head(3), per_head(3)),
        "product_by_token": product(PerChannel(16, axis=-2), PerChannel(9, axis=-1)),
        "product_mixed": product(TENSOR, per_head(3)),
        "context": context(Sulq(), octaves=12),
        "context_by_head": context(Log(), per_head(3)),
        "context_of_few_octaves": context(Sulq(), octaves=6),
        "norm": Case(norm, (tokens,)),
    }


with torch.random.fork_rng():
    torch.manual_seed(0)
    CASES = cases()
STAIRCASES = [name for name in CASES if re.match("linear_[A-Z]|context", name)]
EXACT = [name for name in CASES if name not in STAIRCASES]


class _All(nn.Module):
    """All layers in one graph, as tracing takes seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: case.layer for name, case in CASES.items()})
        self.counts = [len(case.inputs) for case in CASES.values()]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left = list(inputs)
        return tuple(
            layer(*[left.pop(0) for _ in range(count)])
            for layer, count in zip(self.layers.values(), self.counts, strict=True)
        )


@dataclass(frozen=True)
class Run:
    """What ONNX Runtime gave for each case, the operators of the graph that it ran, and what is told of it."""

    outputs: dict[str, torch.Tensor]
    operators: list[str]
    kinds: dict[str, str]
    floats: set[str]


def run(flipped_at_most: float, folder: Path) -> Run:
    graph = graph_network(_All(), None, flipped_at_most)
    inputs = [value for case in CASES.values() for value in case.inputs]
    names = [f"x{index}" for index in range(len(inputs))]
    write_graph(graph.model, inputs, folder / "layers.onnx", names, list(CASES), {})
    made = session(onnx.load(folder / "layers.onnx"), "layers", 1, folder / "optimized.onnx")
    outputs = made.run(list(CASES), {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    operators = [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
    kinds = {path: child.kind for path, child in graph.model.named_modules() if isinstance(child, Encoder)}
    floats = {path.removeprefix("layers.") for path in graph.floats}
    return Run(dict(zip(CASES, map(torch.from_numpy, outputs), strict=True)), operators, kinds, floats)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(-1.0, tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="module")
def looked_up(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(1.0, tmp_path_factory.mktemp("looked_up"))


@pytest.mark.parametrize("name", CASES)
def test_a_layer_gives_what_it_gives_in_pytorch(name: str, exact: Run) -> None:
    case = CASES[name]
    torch.testing.assert_close(exact.outputs[name], case.layer(*case.inputs), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", STAIRCASES)
def test_lookups_flip_few_numbers(name: str, looked_up: Run) -> None:
    case = CASES[name]
    expected = case.layer(*case.inputs)
    assert float((looked_up.outputs[name] - expected).norm() / expected.norm()) < 0.02


def test_the_engine_multiplies_integers(exact: Run) -> None:
    """The regression that a bias of one axis brings: a float Gemm, twice as slow as the float network."""
    without_integers = {"linear_by_channel", "linear_AdaLog", "linear_Log", "context", "context_by_head"}
    without_integers |= {"linear_TwinUniform", "linear_Tangent", "linear_AnchoredUniform"}
    assert without_integers <= exact.floats
    assert exact.floats <= without_integers | {"linear_Sulq"}
    assert exact.operators.count("MatMulIntegerToFloat") == len(CASES) - len(exact.floats | {"convolution", "norm"})
    floats = [name for name in exact.operators if name in {"MatMul", "MatMulNBits"}]
    assert len(floats) == len(exact.floats)


def test_staircases_are_written_as_told(exact: Run, looked_up: Run) -> None:
    of = {
        name: exact.kinds[f"layers.{name}.{side}"]
        for name, side in (("context", "left"), ("context_by_head", "left"), ("linear_Sulq", "encoder"))
    }
    assert of == {"context": "exact lookup", "context_by_head": "comparisons", "linear_Sulq": "exact lookup"}
    assert looked_up.kinds["layers.context.left"] == "lookup"
