"""OpenVINO: float and quantized."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from isvit_lightning.export.openvino import OpenVinoNetwork, export_openvino, shared_core
from isvit_lightning.run.benchmark.forms import Form, Forms, made
from isvit_lightning.run.benchmark.graphs import Graph, Graphs
from isvit_lightning.run.benchmark.resident import resident_bytes

ENGINE = "OpenVINO"
_PRODUCTS = ("FullyConnected", "MatMul", "Convolution")
"""Layers that have products."""


def forms(graphs: Graphs) -> Forms:
    """The forms of OpenVINO.

    Args:
        graphs: files that are converted.
    """
    missing = graphs.missing(ENGINE, "onnxruntime", "openvino")
    if missing is not None:
        yield missing
        return
    yield made(ENGINE, "float", lambda: _form("float", graphs.float_network(), graphs))
    yield made(ENGINE, "quantized", lambda: _form("quantized", graphs.quantized(), graphs))


def _form(name: str, graph: Graph, graphs: Graphs) -> Form:
    path, _ = export_openvino(graph.path, graphs.folder / "openvino", name=name)
    size = graphs.subject.size
    return Form(
        ENGINE,
        name,
        partial(OpenVinoNetwork, path),
        is_float=name == "float",
        file_bytes=path.stat().st_size + path.with_suffix(".bin").stat().st_size,
        resident_bytes=resident_bytes(OpenVinoNetwork, ("openvino",), path, size),
        profile=None if graph.floats is None else partial(_profile, path, size, graph.floats),
    )


def _profile(path: Path, size: tuple[int, ...], floats: Mapping[str, str]) -> dict[str, str]:
    """What was written as products of floats, and what the engine makes of the rest.

    Args:
        path: the file.
        size: channels, height and width of an image.
        floats: why products are written as ones of floats, by path of their layer.
    """
    core = shared_core()
    model = core.read_model(path)
    model.reshape([1, *size])
    graph = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    found = dict(floats)
    for node in graph.get_ops():
        kind, precision = (str(node.get_rt_info()[name].value) for name in ("layerType", "runtimePrecision"))
        if kind in _PRODUCTS and precision == "f32":
            found[node.get_friendly_name()] = f"runs as {kind} of floats"
    return found
