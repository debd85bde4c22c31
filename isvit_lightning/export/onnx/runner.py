"""An ONNX file as a network that computes in ONNX Runtime."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.export.onnx.engines import require
from isvit_lightning.export.onnx.files import read_model
from isvit_lightning.export.onnx.metadata import decoded


class OnnxNetwork(nn.Module):
    """A network that ONNX Runtime computes, on the CPU.

    Args:
        path: file of ``isvit export``.
        threads: of the processor; None leaves it to the engine.

    Attributes:
        metadata: what the file tells of itself.

    Raises:
        IsvitError: onnxruntime is not installed or does not know the operators, or the file is missing, truncated,
            altered, or of another program or version.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__()
        path = Path(path)
        model = read_model(path)
        self.metadata = decoded({entry.key: entry.value for entry in model.metadata_props})
        self._session = session(model, str(path), threads)
        self._inputs = [entry.name for entry in self._session.get_inputs()]

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of ``images (batch, 3, height, width)``; the first output of another graph."""
        return self.outputs(*inputs)[0]

    def outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """All outputs of the graph."""
        arrays = {name: value.detach().cpu().numpy() for name, value in zip(self._inputs, inputs, strict=True)}
        return [torch.from_numpy(array) for array in self._session.run(None, arrays)]


def session(model: Any, name: str, threads: int | None = None, optimized: Path | None = None) -> Any:
    """An ``onnxruntime.InferenceSession``.

    Args:
        model: the ``onnx.ModelProto``.
        name: of the file, for messages.
        threads: of the processor; None leaves it to the engine.
        optimized: where the engine writes the graph that it runs; None for nowhere.

    Raises:
        IsvitError: onnxruntime is not installed, or refuses the graph.
    """
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Products with weights of 4 bits in float, as they are meant; by itself the engine rounds their inputs to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if _has_zero_points(model.graph):
        # Exact sums of uint8 times int8 on x86 without VNNI too, where the engine else lets pairs of them overflow.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the engine's errors have no base that it names
        raise IsvitError(
            f"ONNX Runtime {onnxruntime.__version__} does not run {name} ({first_line(error)[-200:]}), expected one "
            "that knows its operators: update onnxruntime."
        ) from error


def _has_zero_points(graph: Any) -> bool:
    """Whether all weights of int8 have them, as they do in graphs whose inputs have codes of more than 7 bits."""
    kind = require("onnx").TensorProto.INT8
    int8 = {tensor.name for tensor in graph.initializer if tensor.data_type == kind and tensor.dims}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in int8]
    return bool(weights) and all(len(node.input) == 3 for node in weights)
