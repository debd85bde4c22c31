"""Runs that leave the building as packed files and as folders of a hub."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import isvit_lightning
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.runs import export_hub, export_packed
from isvit_lightning.storage.files import read_tensors

Export = Callable[[Path, Path], Path]


@torch.no_grad()
def test_a_packed_file_stands_alone(quickstart_run: Path, tmp_path: Path) -> None:
    path = export_packed(quickstart_run, tmp_path / "new" / "folder")
    assert [file.name for file in path.parent.iterdir()] == ["quantized.safetensors"]
    assert path.read_bytes() == (quickstart_run / "quantized.safetensors").read_bytes()
    images = torch.randn(4, 3, 32, 32)
    for given in (path, path.parent):
        assert torch.equal(isvit_lightning.load(given)(images), isvit_lightning.load(quickstart_run)(images))


@torch.no_grad()
def test_a_hub_folder_stands_alone(quickstart_run: Path, tmp_path: Path) -> None:
    folder = export_hub(quickstart_run, tmp_path / "digits")
    loaded, network = isvit_lightning.load(folder), isvit_lightning.load(quickstart_run)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(loaded(images), network(images))
    assert loaded.results == json.loads((quickstart_run / "results.json").read_text())
    assert f"{loaded.results['metrics']['quantized']['top1']:.6g}" in (folder / "README.md").read_text()
    assert export_hub(quickstart_run, folder) == folder


def test_both_have_the_same_tensors(quickstart_run: Path, tmp_path: Path) -> None:
    packed = read_tensors(export_packed(quickstart_run, tmp_path / "a"))
    hub = read_tensors(export_hub(quickstart_run, tmp_path / "b") / "model.safetensors")
    assert packed[1] == hub[1]
    assert all(torch.equal(tensor, hub[0][name]) for name, tensor in packed[0].items())


@pytest.mark.parametrize("export", [export_packed, export_hub])
def test_an_unfinished_run_is_one_sentence(export: Export, tmp_path: Path) -> None:
    for run in (tmp_path / "empty", tmp_path / "interrupted", tmp_path / "absent"):
        if run.name != "absent":
            run.mkdir()
        if run.name == "interrupted":
            (run / "checkpoints").mkdir()
        with pytest.raises(IsvitError, match=r"no finished run, but an interrupted|does not exist; expected") as caught:
            export(run, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export", [export_packed, export_hub])
def test_a_damaged_run_is_one_sentence(export: Export, quickstart_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(quickstart_run, tmp_path / "run"))
    content = bytearray((run / "quantized.safetensors").read_bytes())
    content[-5] ^= 1
    (run / "quantized.safetensors").write_bytes(content)
    with pytest.raises(IsvitError, match="changed after it was written"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hub_folder_is_no_run_directory(quickstart_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(quickstart_run, tmp_path / "run"))
    with pytest.raises(IsvitError, match="is a run directory, expected a folder for the files of a hub"):
        export_hub(run, run)


def test_what_does_not_read_back_is_told(quickstart_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = isvit_lightning.load(quickstart_run)
    with torch.no_grad():
        network.model.get_parameter("norm.bias")[0] += 1
    loaded = iter([isvit_lightning.load(quickstart_run), network])
    with pytest.raises(IsvitError, match="does not read back as it was written, expected equal bits"):
        export_packed(quickstart_run, tmp_path, lambda _: next(loaded))
