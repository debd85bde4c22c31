"""OpenVINO's own files, converted from an ONNX graph, and a way to run them."""

import functools
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.export.onnx.compare import Distance, distance
from isvit_lightning.export.onnx.engines import require
from isvit_lightning.export.onnx.files import read_model
from isvit_lightning.export.onnx.metadata import decoded
from isvit_lightning.export.onnx.runner import OnnxNetwork

FORMAT = "isvit-openvino-1"
_ROOM, _NAME = "isvit", "metadata"
"""Where our texts, by name in one JSON text, are among what a file tells of itself."""


def export_openvino(
    onnx_path: str | Path, folder: str | Path, *, images: torch.Tensor | None = None, name: str = "network"
) -> tuple[Path, Distance | None]:
    """Convert an ONNX file of this program to ``network.xml`` and ``network.bin``, and run it once.

    Args:
        onnx_path: file of :func:`isvit_lightning.export.onnx.export_onnx`.
        folder: where the two files are written.
        images: preprocessed images ``(n, 3, height, width)``, on which both files are compared; None compares nothing.
            Its ``floor`` is that of the ONNX file.
        name: of the two files, without ending.

    Returns:
        The file with the graph, and how far it is from the ONNX file in ONNX Runtime.

    Raises:
        IsvitError: openvino or onnx is not installed, the ONNX file is damaged or holds what OpenVINO does not know, or
            the files cannot be written.
    """
    openvino = require("openvino")
    onnx_path, path = Path(onnx_path), Path(folder) / f"{name}.xml"
    proto = read_model(onnx_path)
    values = decoded({entry.key: entry.value for entry in proto.metadata_props})
    model = _converted(openvino, proto, onnx_path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(model, path, compress_to_fp16=False)
        _describe(model, values | {"format": FORMAT, "weights_hash": _hash(path.with_suffix(".bin"))})
        openvino.save_model(model, path, compress_to_fp16=False)
    except (OSError, RuntimeError) as error:
        raise IsvitError(f"Cannot write {path}: {first_line(error)}; expected a writable folder with room.") from error
    engine = OpenVinoNetwork(path)
    return path, None if images is None else distance(engine, OnnxNetwork(onnx_path), images)


def _converted(openvino: Any, proto: Any, onnx_path: Path) -> Any:
    for node in proto.graph.node:
        # The same on a table of one axis, and what OpenVINO has vectorized.
        if node.op_type == "GatherElements":
            node.op_type = "Gather"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(proto.SerializeToString())
        try:
            return openvino.convert_model(path)
        except Exception as error:  # the engine's errors have no base that it names
            raise IsvitError(
                f"OpenVINO {openvino.__version__} does not convert {onnx_path} ({first_line(error)}), expected one "
                "that knows its operators: update openvino."
            ) from error


def _describe(model: Any, values: dict[str, Any]) -> None:
    texts = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    model.set_rt_info(json.dumps(texts), [_ROOM, _NAME])


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def shared_core() -> Any:
    """OpenVINO's core, one for the process.

    Each of its plugins for the CPU lends the process a stack for signals and gives back the one that it saw before;
    where two end in the order in which they began, that is a stack that is gone, and the next signal ends the process.

    Raises:
        IsvitError: openvino is not installed.
    """
    return require("openvino").Core()


class OpenVinoNetwork(nn.Module):
    """A network that OpenVINO computes, on the CPU.

    Args:
        path: ``.xml`` file of ``isvit export``; its ``.bin`` lies beside it.
        threads: of the processor; None leaves it to the engine.

    Attributes:
        metadata: what the file tells of itself: preprocessing, classes, bits, recipe, packed_hash.

    Raises:
        IsvitError: openvino is not installed or does not know the operators, or a file is missing, truncated, altered,
            or of another program or version.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__()
        self._path = path = Path(path)
        self._core = shared_core()
        # One request at a time, in float32 where a product is not one of integers, whatever the processor has.
        self._options: dict[str, Any] = {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads
        self._model = _read(self._core, path)
        self.metadata = _metadata(self._model, path)
        self._requests: dict[tuple[tuple[int, ...], ...], Any] = {}

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of ``images (batch, 3, height, width)``; the first output of another graph."""
        return self.outputs(*inputs)[0]

    def outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """All outputs of the graph."""
        arrays = [value.detach().cpu().numpy() for value in inputs]
        results = self._request(tuple(array.shape for array in arrays)).infer(arrays)
        return [torch.from_numpy(array.copy()) for array in results.values()]

    def _request(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """A graph compiled for these shapes, which is faster than one for any."""
        if shapes not in self._requests:
            model = self._model.clone()
            model.reshape(dict(zip(model.inputs, map(list, shapes), strict=True)))
            self._requests[shapes] = self._core.compile_model(model, "CPU", self._options).create_infer_request()
        return self._requests[shapes]


def _read(core: Any, path: Path) -> Any:
    for part in (path, path.with_suffix(".bin")):
        if not part.is_file():
            raise IsvitError(f"{part} does not exist, expected a file of OpenVINO: write one with isvit export.")
    try:
        return core.read_model(path)
    except Exception as error:  # the engine's errors have no base that it names
        raise IsvitError(_damaged(path, str(error).strip().splitlines()[-1])) from error


def _metadata(model: Any, path: Path) -> dict[str, Any]:
    try:
        texts = model.get_rt_info([_ROOM, _NAME]).value if model.has_rt_info([_ROOM, _NAME]) else "{}"
        values = {str(name): json.loads(text) for name, text in json.loads(texts).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise IsvitError(_damaged(path, first_line(error))) from error
    if values.get("format") != FORMAT:
        raise IsvitError(
            f"{path} has format {values.get('format')}, expected {FORMAT}: write it anew with isvit export."
        )
    if values.get("weights_hash") != _hash(path.with_suffix(".bin")):
        raise IsvitError(_damaged(path, "the numbers beside it are not those of its hash"))
    return values


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged ({reason}), expected a file as isvit export wrote it: write it anew."
