"""A finished run in each engine."""

import json
from pathlib import Path
from typing import Any

import pytest

from isvit_lightning.errors import IsvitError
from isvit_lightning.run.benchmark import benchmark, onnx_runtime, openvino
from isvit_lightning.run.benchmark import pytorch as pytorch_engine
from isvit_lightning.run.benchmark.options import Options
from isvit_lightning.run.benchmark.report import Report
from isvit_lightning.sources.source import NetworkSource
from tests.run.test_runner import content, runner

EAGER = ["float, eager", "simulated, eager", "integer, eager"]


@pytest.fixture(scope="module", name="finished")
def a_finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    runner(directory).fit(evaluate=True, baselines=[])
    return directory


@pytest.fixture(autouse=True)
def nothing_takes_long(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes half a minute, and a process of its own for the memory of each file ten seconds."""
    if "compiles" not in request.node.name:
        monkeypatch.setattr(pytorch_engine, "missing_compiler", lambda device: "there is no C++ compiler c")
    for engine in (onnx_runtime, openvino):
        monkeypatch.setattr(engine, "resident_bytes", lambda *_: 1_000_000)


def measured(directory: Path, **options: Any) -> Report:
    usual = {"batches": (1, 2), "repeats": 2, "engines": ("pytorch",)}
    return benchmark(runner(directory), str(directory), Options(**{**usual, **options}))


def test_rows_of_pytorch(finished: Path) -> None:
    report = measured(finished, profile=True)
    assert [(row.form, row.batch) for row in report.speeds] == [(name, size) for size in (1, 2) for name in EAGER]
    assert all(row.milliseconds and row.ratio and row.reason is None for row in report.speeds)
    assert [row.ratio for row in report.speeds if row.form == "float, eager"] == [1, 1]
    parity = {row.form: row.metrics for row in report.parities}
    expected = content(finished)["metrics"]
    assert parity["float, eager"].items() >= expected["float"].items()
    assert parity["simulated, eager"] == {**expected["quantized"], "same": 100.0}
    assert set(parity) == {*EAGER, "simulated, float64"}
    assert all(
        set(each) >= {"top1", "agreement", "kl", "same"} for name, each in parity.items() if "float, " not in name
    )
    sizes = {form.name: form for form in report.forms}
    assert sizes["integer, eager"].file_bytes == (finished / "quantized.safetensors").stat().st_size  # type: ignore[union-attr]
    assert sizes["integer, eager"].resident_bytes < 0.5 * sizes["float, eager"].resident_bytes  # type: ignore[union-attr,operator]
    assert report.profile == {"PyTorch, integer, eager": {"patch_embed.proj": "its input is float"}}
    assert report.codes is not None
    assert report.codes["differing"] == 0
    assert report.codes["compared"] > 10_000
    assert report.profiled()[-1].endswith(" codes differ where layers see the same inputs")


def test_what_is_written(finished: Path) -> None:
    report = measured(finished)
    written = json.loads((finished / "benchmark.json").read_text())
    assert written == json.loads(json.dumps(report.as_dict()))
    assert written["seed"] == 0
    assert {"processor", "cores", "load", "date", "versions"} <= set(written["machine"])
    text = (finished / "benchmark.md").read_text()
    assert "## Speed, medians of 2 batches by turns" in text
    assert "## Size and accuracy on 20 images" in text
    assert "It cannot be compiled: there is no C++ compiler c, expected one" in text
    assert not list(finished.glob("*.onnx"))


def test_accuracy_may_be_left_out(finished: Path) -> None:
    run = runner(finished)
    report = benchmark(run, str(finished), Options(batches=(1,), repeats=1, engines=("pytorch",), accuracy=False))
    assert run.measured == []
    assert (report.images, report.parities) == (0, [])
    assert "simulated, float64" not in [form.name for form in report.forms]


def test_the_float_network_may_be_away(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: NetworkSource) -> None:
        raise IsvitError("The weights are away, expected them here: look elsewhere.")

    monkeypatch.setattr(NetworkSource, "build", away)
    report = measured(finished, batches=(1,))
    assert [row.form for row in report.speeds] == EAGER[1:]
    assert [row.ratio for row in report.speeds] == [None, None]
    assert {row.form: row.metrics.get("agreement") for row in report.parities} == dict.fromkeys(
        (*EAGER[1:], "simulated, float64")
    )
    assert "The weights are away" in report.markdown()


def test_a_run_must_be_named_and_finished(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match=r"^No run is named, expected a finished one"):
        benchmark(runner(tmp_path), None, Options())
    with pytest.raises(IsvitError, match=r"holds no finished run; expected a run directory"):
        benchmark(runner(tmp_path), str(tmp_path), Options())
    assert not (tmp_path / "benchmark.json").exists()


@pytest.mark.slow
def test_it_compiles(finished: Path) -> None:
    report = measured(finished, batches=(2,))
    names = ["float, eager", "float, compiled", "simulated, eager", "integer, eager", "integer, compiled"]
    assert [row.form for row in report.speeds] == names
    assert [row.reason for row in (*report.speeds, *report.parities)] == [None] * 11
    best = min(row.milliseconds or 0 for row in report.speeds if row.form.startswith("float"))
    assert all(row.ratio == pytest.approx(best / (row.milliseconds or 0)) for row in report.speeds)


@pytest.mark.export
def test_rows_of_other_engines(finished: Path) -> None:
    report = measured(finished, batches=(2,), engines=("onnxruntime", "openvino"), profile=True)
    names = {"ONNX Runtime": ["float", "quantized", "int4 weights"], "OpenVINO": ["float", "quantized"]}
    rows = [(engine, name) for engine, each in names.items() for name in each]
    assert [(row.engine, row.form) for row in report.speeds] == rows
    assert [row.ratio for row in report.speeds if row.form == "float"] == [1, 1]
    parity = {(row.engine, row.form): row.metrics for row in report.parities}
    for engine in names:
        assert parity[engine, "float"]["agreement"] == 100
        assert parity[engine, "quantized"]["same"] >= 95
    assert [row.form for row in report.parities if row.engine == "PyTorch"] == [*EAGER[:2], "simulated, float64"]
    sizes = [form.file_bytes for form in report.forms if form.engine == "ONNX Runtime"]  # type: ignore[union-attr]
    assert sizes == sorted(sizes, reverse=True)
    assert "patch_embed.proj" in (report.profile or {})["ONNX Runtime, quantized"]
