"""Writing a module as an ONNX file."""

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isvit_lightning.export.onnx.engines import require
from isvit_lightning.export.onnx.files import set_metadata
from isvit_lightning.export.onnx.narrow import store_in_four_bits
from isvit_lightning.storage.files import write_atomically

OPSET = 21
"""First with integers of 4 bits, and with a block of scales."""


@torch.no_grad()
def write_graph(
    module: nn.Module,
    inputs: Sequence[torch.Tensor],
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    metadata: Mapping[str, str],
    *,
    dynamic: Sequence[Mapping[int, str]] | None = None,
    narrow: bool = False,
) -> None:
    """Write ``module``, whose first axes are all the batch.

    Args:
        module: what is written, of any architecture.
        inputs: example of each input; batches of two or more.
        path: the file.
        input_names: of the graph.
        output_names: of the graph.
        metadata: texts by name.
        dynamic: names of the axes of each input whose length is free; None for the first of each.
        narrow: whether codes of weights in uint8 become ones of 4 bits.

    Raises:
        IsvitError: onnx or onnxscript is not installed, or the file cannot be written.
    """
    onnx = require("onnx")
    require("onnxscript")
    axes = dynamic if dynamic is not None else [{0: "batch"} for _ in inputs]
    names = {name for of_input in axes for name in of_input.values()}
    free = {name: torch.export.Dim(name) for name in names}
    shapes: tuple[Any, ...] = tuple({axis: free[name] for axis, name in of_input.items()} for of_input in axes)
    if any(entry.kind == entry.VAR_POSITIONAL for entry in inspect.signature(module.forward).parameters.values()):
        shapes = (shapes,)  # how torch.export wants those of *inputs
    module.eval()
    with _quiet():
        program: Any = torch.onnx.export(
            module,
            tuple(inputs),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=list(input_names),
            output_names=list(output_names),
            external_data=False,
            verbose=False,
        )
    model = program.model_proto
    if narrow:
        store_in_four_bits(model)
    _part_zero_points(model.graph)
    for node in model.graph.node:
        # Where each came from in Python: a third of a small file.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    set_metadata(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    write_atomically(path, model.SerializeToString())


def _part_zero_points(graph: Any) -> None:
    """Give each weight zero points of its own: ONNX Runtime changes them in place where it makes uint8 of a weight."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    seen = set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[0] not in tensors:
            continue
        name = node.input[2]
        if name in seen:
            copy = graph.initializer.add()
            copy.CopyFrom(tensors[name])
            copy.name = node.input[2] = f"{name}_of_{node.input[0]}"
        seen.add(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters tell of their own steps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
