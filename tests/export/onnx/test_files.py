"""Files that are not what they should be, and engines that are not there."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.onnx.engines import require
from isvit_lightning.export.onnx.files import read_metadata, set_metadata
from isvit_lightning.export.onnx.metadata import FORMAT
from isvit_lightning.export.onnx.runner import OnnxNetwork
from isvit_lightning.export.onnx.write import write_graph

pytestmark = pytest.mark.export
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("file") / "network.onnx"
    texts = {"isvit.format": f'"{FORMAT}"', "isvit.classes": '["ä", "b"]', "other": "no json"}
    write_graph(nn.Linear(4, 2), [torch.zeros(2, 4)], path, ["images"], ["logits"], texts)
    return path.read_bytes()


@pytest.fixture
def path(content: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    path.write_bytes(content)
    return path


def changed(content: bytes, change: Any) -> bytes:
    model = onnx.load_from_string(content)
    change(model)
    return model.SerializeToString()


def test_texts_are_read_back(path: Path) -> None:
    values = read_metadata(path)
    assert values["classes"] == ["ä", "b"]
    assert "other" not in values
    assert OnnxNetwork(path).metadata == values


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file(path: Path, content: bytes, share: float) -> None:
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(IsvitError, match=r"is damaged|has format None"):
        OnnxNetwork(path)


def test_altered_numbers(path: Path, content: bytes) -> None:
    def alter(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]

    path.write_bytes(changed(content, alter))
    with pytest.raises(IsvitError, match="is damaged .its numbers are not those of its hash"):
        OnnxNetwork(path)


def test_a_newer_version(path: Path, content: bytes) -> None:
    path.write_bytes(changed(content, lambda model: set_metadata(model, {"isvit.format": '"isvit-onnx-9"'})))
    with pytest.raises(IsvitError, match=f"has format isvit-onnx-9, expected {FORMAT}"):
        read_metadata(path)


def test_texts_that_are_no_json(path: Path, content: bytes) -> None:
    path.write_bytes(changed(content, lambda model: set_metadata(model, {"isvit.format": "x"})))
    with pytest.raises(IsvitError, match="is damaged"):
        read_metadata(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match="does not exist"):
        OnnxNetwork(tmp_path / "none.onnx")


def test_an_opset_that_the_engine_does_not_know(path: Path, content: bytes) -> None:
    def alter(model: Any) -> None:
        model.opset_import[0].version = 99

    path.write_bytes(changed(content, alter))
    with pytest.raises(IsvitError, match=r"ONNX Runtime .* does not run .*: update onnxruntime"):
        OnnxNetwork(path)


def test_an_engine_that_is_not_installed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(IsvitError, match=r'onnx is not installed, .* pip install "isvit-lightning\[export\]"'):
        require("onnx")
    with pytest.raises(IsvitError, match="is not installed"):
        OnnxNetwork(path)
