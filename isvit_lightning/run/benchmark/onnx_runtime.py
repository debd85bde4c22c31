"""ONNX Runtime: float, quantized, and weights of 4 bits."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from isvit_lightning.export.onnx import OnnxNetwork
from isvit_lightning.export.onnx.engines import require
from isvit_lightning.export.onnx.files import read_model
from isvit_lightning.export.onnx.runner import session
from isvit_lightning.run.benchmark.forms import Form, Forms, made
from isvit_lightning.run.benchmark.graphs import Graph, Graphs
from isvit_lightning.run.benchmark.resident import resident_bytes

ENGINE = "ONNX Runtime"
_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv", "Attention", "MultiHeadAttention")
"""Operators whose products are ones of floats."""


def forms(graphs: Graphs) -> Forms:
    """The forms of ONNX Runtime.

    Args:
        graphs: its files.
    """
    missing = graphs.missing(ENGINE, "onnxruntime")
    if missing is not None:
        yield missing
        return
    for name, write in (
        ("float", graphs.float_network),
        ("quantized", graphs.quantized),
        ("int4 weights", graphs.int4),
    ):
        yield made(ENGINE, name, lambda name=name, write=write: _form(name, write(), graphs))  # type: ignore[misc]


def _form(name: str, graph: Graph, graphs: Graphs) -> Form:
    path = graph.path
    return Form(
        ENGINE,
        name,
        partial(OnnxNetwork, path),
        is_float=name == "float",
        file_bytes=path.stat().st_size,
        resident_bytes=resident_bytes(OnnxNetwork, ("onnx", "onnxruntime"), path, graphs.subject.size),
        profile=None if graph.floats is None else partial(_profile, path, graph.floats),
    )


def _profile(path: Path, floats: Mapping[str, str]) -> dict[str, str]:
    """What was written as products of floats, and what the engine makes of the rest.

    Args:
        path: the file.
        floats: why products are written as ones of floats, by path of their layer.
    """
    optimized = path.with_name("optimized.onnx")
    session(read_model(path), str(path), 1, optimized)
    nodes = [node for node in require("onnx").load(optimized).graph.node if node.op_type in _PRODUCTS]
    return {**floats, **{node.name or node.output[0]: f"runs as {node.op_type} of floats" for node in nodes}}
