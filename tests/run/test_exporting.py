"""`isvit export`: each form is written, tells what it is, and computes what the run computes."""

from pathlib import Path

import pytest
import torch

import isvit_lightning
from isvit_lightning.networks import switch
from isvit_lightning.program import main
from isvit_lightning.storage.aside import set_aside
from isvit_lightning.storage.files import read_tensors

pytestmark = pytest.mark.usefixtures("own_arguments")


def exported(run: Path, form: str, output: Path) -> Path:
    assert main(["export", str(run), "--format", form, "--output", str(output)]) == 0
    return output


def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["packed", "hub"])
def test_files_of_this_program_give_the_same_bits(quickstart_run: Path, tmp_path: Path, form: str) -> None:
    folder = exported(quickstart_run, form, tmp_path)
    written = folder / "quantized.safetensors" if form == "packed" else folder / "hub"
    assert torch.equal(isvit_lightning.load(written)(images()), isvit_lightning.load(quickstart_run)(images()))


@pytest.mark.export
@pytest.mark.parametrize("form", ["onnx", "onnx-int4", "openvino"])
def test_graphs_of_engines_compute_the_same_but_for_flipped_codes(
    quickstart_run: Path, tmp_path: Path, form: str
) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)
    from isvit_lightning.export.onnx import OnnxNetwork
    from isvit_lightning.export.openvino import OpenVinoNetwork

    folder = exported(quickstart_run, form, tmp_path)
    name = {"onnx": "model.onnx", "onnx-int4": "model_int4.onnx", "openvino": "openvino/model.xml"}[form]
    network = (OpenVinoNetwork if form == "openvino" else OnnxNetwork)(folder / name)
    simulated = isvit_lightning.load(quickstart_run)
    switch(simulated.model, weights=True, activations=form != "onnx-int4")
    batch = images()
    expected, given = simulated(batch), network(batch)
    assert given.shape == expected.shape
    assert network(batch[:1]).shape == expected[:1].shape
    assert float((given - expected).abs().max()) < 0.5 * float(expected.std())
    assert network.metadata["classes"] == [str(digit) for digit in range(10)]
    assert network.metadata["packed_hash"] == simulated.sha256
    assert network.metadata["preprocessing"]["input_size"] == [3, 32, 32]


def test_the_export_lies_in_the_run_and_goes_aside_with_it(quickstart_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for file in quickstart_run.iterdir():
        if file.is_file():
            (run / file.name).write_bytes(file.read_bytes())
    assert main(["export", str(run), "--format", "packed"]) == 0
    tensors, _ = read_tensors(run / "export" / "quantized.safetensors")
    assert tensors
    assert (set_aside(run) / "export" / "quantized.safetensors").exists()
    assert not (run / "export").exists()


def test_an_unfinished_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "--format", "packed"]) == 2
    assert "holds no finished run; expected a run directory" in capsys.readouterr().err


def test_a_run_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--config", "configs/quickstart.yaml", "--format", "packed"]) == 2
    assert "There is no run to export" in capsys.readouterr().err
