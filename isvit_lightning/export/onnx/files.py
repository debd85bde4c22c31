"""Reading ONNX files: what they tell of themselves, and whether they are as they were written."""

import hashlib
from pathlib import Path
from typing import Any

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.export.onnx.engines import require
from isvit_lightning.export.onnx.metadata import FORMAT, PREFIX, decoded

HASH = PREFIX + "graph_hash"
"""Name of the hash of the graph among the texts of a file."""


def graph_hash(model: Any) -> str:
    """Hash of the numbers and nodes of an ``onnx.ModelProto``, without its texts."""
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda entry: entry.name):
        digest.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}\n".encode())
        digest.update(tensor.SerializeToString(deterministic=True))
    for node in model.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    return digest.hexdigest()


def set_metadata(model: Any, texts: dict[str, str]) -> None:
    """Write texts and the hash of the graph into an ``onnx.ModelProto``."""
    require("onnx").helper.set_model_props(model, texts | {HASH: f'"{graph_hash(model)}"'})


def read_model(path: Path) -> Any:
    """The ``onnx.ModelProto`` of a file of this program.

    Raises:
        IsvitError: onnx is not installed, or the file is missing, truncated, altered, or of another program or version.
    """
    onnx = require("onnx")
    if not path.is_file():
        raise IsvitError(f"{path} does not exist, expected an ONNX file: write one with isvit export.")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no base that onnx names
        raise IsvitError(_damaged(path, first_line(error))) from error
    texts = {entry.key: entry.value for entry in model.metadata_props}
    given = _decoded(path, texts).get("format")
    if given != FORMAT:
        raise IsvitError(f"{path} has format {given}, expected {FORMAT}: write it anew with isvit export.")
    if texts.get(HASH) != f'"{graph_hash(model)}"':
        raise IsvitError(_damaged(path, "its numbers are not those of its hash"))
    return model


def read_metadata(path: Path) -> dict[str, Any]:
    """What a file tells of itself: preprocessing, classes, bits, recipe, packed_hash.

    Raises:
        IsvitError: onnx is not installed, or the file is missing, truncated, altered, or of another program or version.
    """
    return decoded({entry.key: entry.value for entry in read_model(path).metadata_props})


def _decoded(path: Path, texts: dict[str, str]) -> dict[str, Any]:
    try:
        return decoded(texts)
    except ValueError as error:
        raise IsvitError(_damaged(path, first_line(error))) from error


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged ({reason}), expected an ONNX file as isvit export wrote it: write it anew."
