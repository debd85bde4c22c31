"""OpenVINO's files, against ONNX Runtime and the simulated network."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.onnx import export_onnx
from isvit_lightning.export.openvino import OpenVinoNetwork, export_openvino
from isvit_lightning.sources.preprocessing import Preprocessing
from tests.helpers import image_batch, quantized_network, tiny_vit

pytestmark = pytest.mark.export
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PREPROCESSING = Preprocessing((3, 16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedNetwork, torch.Tensor, Path]:
    torch.manual_seed(0)
    images = image_batch(count=5)
    model = quantized_network(tiny_vit(depth=1, embed_dim=32), images).model
    network = QuantizedNetwork(model, None, PREPROCESSING)
    folder = tmp_path_factory.mktemp("openvino")
    export_onnx(network, folder / "network.onnx", images=images, classes=list("abcde"), packed_hash="abc")
    path, distance = export_openvino(folder / "network.onnx", folder, images=images)
    assert distance is not None
    assert distance.agreement == 1
    return network, images, path


def test_the_files_give_the_networks_logits(written: tuple[QuantizedNetwork, torch.Tensor, Path]) -> None:
    network, images, path = written
    engine = OpenVinoNetwork(path, threads=1)
    for batch in (images, images[:1]):
        torch.testing.assert_close(engine(batch), network(batch), rtol=1e-3, atol=1e-3)


def test_the_file_tells_what_it_is(written: tuple[QuantizedNetwork, torch.Tensor, Path]) -> None:
    values = OpenVinoNetwork(written[2]).metadata
    assert values["classes"] == list("abcde")
    assert values["packed_hash"] == "abc"
    assert values["preprocessing"]["input_size"] == [3, 16, 16]


@pytest.mark.parametrize("ending", [".xml", ".bin"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_files(
    written: tuple[QuantizedNetwork, torch.Tensor, Path], ending: str, share: float, tmp_path: Path
) -> None:
    for part in (".xml", ".bin"):
        content = written[2].with_suffix(part).read_bytes()
        (tmp_path / f"network{part}").write_bytes(content[: int(len(content) * share)] if part == ending else content)
    with pytest.raises(IsvitError, match="is damaged"):
        OpenVinoNetwork(tmp_path / "network.xml")


def test_altered_numbers(written: tuple[QuantizedNetwork, torch.Tensor, Path], tmp_path: Path) -> None:
    (tmp_path / "network.xml").write_bytes(written[2].read_bytes())
    content = written[2].with_suffix(".bin").read_bytes()
    (tmp_path / "network.bin").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IsvitError, match="not those of its hash"):
        OpenVinoNetwork(tmp_path / "network.xml")


def test_missing_files(written: tuple[QuantizedNetwork, torch.Tensor, Path], tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match=r"network.xml does not exist"):
        OpenVinoNetwork(tmp_path / "network.xml")
    (tmp_path / "network.xml").write_bytes(written[2].read_bytes())
    with pytest.raises(IsvitError, match=r"network.bin does not exist"):
        OpenVinoNetwork(tmp_path / "network.xml")


def test_another_programs_file(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    from openvino import opset15 as ops

    x = ops.parameter([1, 2], name="x")
    openvino.save_model(openvino.Model([ops.relu(x)], [x]), tmp_path / "network.xml")
    with pytest.raises(IsvitError, match="has format None"):
        OpenVinoNetwork(tmp_path / "network.xml")


ONE_AFTER_ANOTHER = """
import faulthandler, signal, subprocess, sys
import torch
from isvit_lightning.export.openvino import OpenVinoNetwork

faulthandler.enable()
signal.signal(signal.SIGCHLD, lambda *_: None)
networks = [OpenVinoNetwork(sys.argv[1]) for _ in range(2)]
for network in networks:
    network(torch.zeros(1, 3, 16, 16))
del network
while networks:
    del networks[0]
subprocess.run(["true"], check=True)
"""


def test_signals_are_handled_when_two_networks_are_gone(
    written: tuple[QuantizedNetwork, torch.Tensor, Path],
) -> None:
    subprocess.run([sys.executable, "-c", ONE_AFTER_ANOTHER, str(written[2])], check=True, timeout=120)
