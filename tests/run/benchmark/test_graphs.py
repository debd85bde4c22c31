"""ONNX files that several engines read, and what keeps an engine from reading any."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning import calibrate
from isvit_lightning.errors import IsvitError
from isvit_lightning.run.benchmark import graphs as module
from isvit_lightning.run.benchmark import onnx_runtime, openvino
from isvit_lightning.run.benchmark.forms import Absent, Form, Subject
from isvit_lightning.run.benchmark.graphs import Graphs
from isvit_lightning.run.benchmark.timing import limited_threads
from tests.helpers import image_batch, tiny_vit


@pytest.fixture(scope="module", name="subject")
def a_subject() -> Subject:
    torch.manual_seed(0)
    network, images = tiny_vit(), image_batch()
    return Subject(calibrate(network, images, bits=4, recipe="isvit", iterations=1), network, (3, 16, 16), None, images)


@pytest.mark.parametrize(
    ("engine", "package"), [(onnx_runtime, "onnxruntime"), (openvino, "openvino"), (openvino, "onnx")]
)
def test_an_engine_that_is_not_installed_is_one_row(
    engine: Any, package: str, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require(name: str) -> None:
        if name == package:
            raise IsvitError(f"{name} is not installed, expected it: install it.")

    monkeypatch.setattr(module, "require", require)
    (row,) = engine.forms(Graphs(subject, tmp_path))
    assert row == Absent(engine.ENGINE, "all", f"{package} is not installed, expected it: install it.")


def test_parts_have_no_graphs(subject: Subject, tmp_path: Path) -> None:
    part = replace(subject, part=lambda network: next(network.children()))
    (row,) = onnx_runtime.forms(Graphs(part, tmp_path))
    assert row.reason.startswith("Only a part of this network is timed, expected a whole one")  # type: ignore[union-attr]


@pytest.mark.export
@pytest.mark.parametrize("engine", [onnx_runtime, openvino])
def test_forms_of_an_engine(engine: Any, subject: Subject, tmp_path: Path) -> None:
    forms = {form.name: form for form in engine.forms(Graphs(subject, tmp_path))}
    assert [*forms][:2] == ["float", "quantized"]
    assert all(isinstance(form, Form) for form in forms.values())
    images = image_batch()
    with torch.inference_mode(), limited_threads(1):
        given = forms["float"].make(1)(images)
        torch.testing.assert_close(given, subject.float_network(images), rtol=1e-3, atol=1e-3)  # type: ignore[operator]
    assert forms["float"].is_float
    assert not forms["quantized"].is_float
    assert forms["float"].resident_bytes > forms["float"].file_bytes / 2
    profile = forms["quantized"].profile()
    assert profile["patch_embed.proj"] == "its input is float"
    assert any(reason.startswith("runs as Conv") for reason in profile.values())


@pytest.mark.export
def test_files_are_written_once(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs(subject, tmp_path)
    first = graphs.float_network()
    monkeypatch.setattr(module, "write_graph", None)
    assert graphs.float_network() is first


@pytest.mark.export
def test_a_float_network_that_is_away_is_a_row(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtime, "resident_bytes", lambda *_: None)
    away = replace(subject, float_network="The weights are away, expected them here: look elsewhere.")
    rows = {form.name: form for form in onnx_runtime.forms(Graphs(away, tmp_path))}
    assert rows["float"] == Absent("ONNX Runtime", "float", str(away.float_network))
    assert isinstance(rows["quantized"], Form)


def test_a_wide_weight_has_no_form_of_4_bits(tmp_path: Path) -> None:
    network = tiny_vit()
    simulated = calibrate(network, image_batch(), bits=6, recipe="round_to_nearest")
    with pytest.raises(IsvitError, match="has 6 bits, expected at most 4"):
        Graphs(Subject(simulated, nn.Identity(), (3, 16, 16)), tmp_path).int4()
