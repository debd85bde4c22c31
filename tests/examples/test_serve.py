"""The example serves classes of a picture that is posted to it."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from isvit_lightning.program import main
from tests.docs.commands import ROOT

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("own_arguments")]


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def client(request: pytest.FixtureRequest, quickstart_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A client of the service over a network of each engine."""
    for package in ("onnxruntime", "onnxscript", "openvino", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    from fastapi.testclient import TestClient

    folder = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pytest"])
        assert main(["export", str(quickstart_run), "--format", request.param, "--output", str(folder)]) == 0
    spec = importlib.util.spec_from_file_location("serve", ROOT / "examples" / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    path = folder / ("model.onnx" if request.param == "onnx" else "openvino/model.xml")
    return TestClient(serve.application(path, threads=1))


def picture() -> bytes:
    pixels = torch.randint(0, 256, (40, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    content = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(content, "PNG")
    return content.getvalue()


def test_a_picture_gets_its_classes(client: Any) -> None:
    answer = client.post("/classify?count=10", content=picture())
    assert answer.status_code == 200
    found = answer.json()
    assert sorted(row["class"] for row in found) == [str(digit) for digit in range(10)]
    shares = [row["probability"] for row in found]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert len(client.post("/classify", content=picture()).json()) == 5


def test_what_is_no_picture_is_told(client: Any) -> None:
    answer = client.post("/classify", content=b"no picture")
    assert answer.status_code == 422
    assert "cannot be read" in answer.json()["detail"]


def test_a_picture_that_is_too_large_is_told(client: Any) -> None:
    assert client.post("/classify", content=bytes(2**24 + 1)).status_code == 413


def test_the_example_is_short() -> None:
    assert len((ROOT / "examples" / "serve.py").read_text().splitlines()) < 60
