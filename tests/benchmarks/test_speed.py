"""Every benchmark of speed and memory at a tiny setting, and the page that their tables fill."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from timm.models.vision_transformer import VisionTransformer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmarks import each other by name, as programs do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(ROOT / "benchmarks") in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import speed

    monkeypatch.setattr(speed, "RECORD", tmp_path / "speed.yaml")
    monkeypatch.setattr(speed, "PAGE", tmp_path / "speed.md")
    (tmp_path / "speed.md").write_text("# Speed\n\n<!-- ranges -->\n<!-- /ranges -->\n\nafter\n")
    return speed


def test_a_recorded_table_stands_on_the_page(speed: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for ratio in (3.0, 0.51234):
        speed.finish("ranges", [{"bits": 3, "ratio": ratio}], ["--record"])
    speed.finish("elsewhere", [{"a": 1}], ["--record"])
    text = speed.PAGE.read_text()
    assert "| bits | ratio |\n|---|---|\n| 3 | 0.5123 |\n" in text
    assert text.endswith("<!-- /ranges -->\n\nafter\n")
    assert text.count("| bits |") == 1
    assert set(speed.read()) == {"ranges", "elsewhere"}
    assert "| 3 | 0.5123 |" in capsys.readouterr().out


def test_nothing_is_recorded_unasked(speed: ModuleType) -> None:
    speed.finish("ranges", [{"bits": 3}], [])
    assert not speed.RECORD.exists()


def test_the_pages_show_what_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import speed

    pages = speed.pages()
    assert [page.name for page in pages] == ["speed.md", "deployment.md", "README.md"]
    (tmp_path / "docs").mkdir()
    for page in pages:
        (tmp_path / page.relative_to(ROOT)).write_text(page.read_text())
    monkeypatch.setattr(speed, "PAGE", tmp_path / "docs" / "speed.md")
    speed.write_page()
    assert [page.read_text() for page in speed.pages()] == [page.read_text() for page in pages]
    recorded = yaml.safe_load((ROOT / "docs" / "speed.yaml").read_text())
    text = "".join(page.read_text() for page in pages)
    assert all(f"<!-- {name} -->" in text and entry["rows"] for name, entry in recorded.items())


def test_ranges() -> None:
    import ranges

    (row,) = ranges.measure(ranges.network("test_vit"), widths=(3,))
    assert row["search, s"] > 0
    assert row["weights"].endswith("million")


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_steps(kind: int) -> None:
    import steps

    row = steps.row([*steps.kinds()][kind], compiler=False, iterations=3)
    assert 0 < row["ratio"] < 20
    assert row["ratio"] == pytest.approx(row["stage-3 step, ms"] / row["float step, ms"], rel=0.1)


def test_a_whole_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    import steps

    columns = [*steps.row(next(steps.kinds()), compiler=False, iterations=2)]
    tiny = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 4}
    monkeypatch.setattr(steps, "build_network", lambda name: VisionTransformer(**tiny).eval())
    whole = steps.time_calibration(iterations=1, images=8)
    assert whole["ratio"] > 0
    # One table holds both kinds of rows.
    assert [*whole] == columns


def test_precision() -> None:
    import precision

    row = precision.measure(4, iterations=1, calibration=8, evaluation=20)
    assert row["change"] == pytest.approx(row["bf16-mixed top-1"] - row["32-true top-1"], abs=0.02)
    assert min(row["32-true step, ms"], row["bf16-mixed step, ms"], row["ratio of steps"]) > 0


def test_a_line_through_points_of_a_line() -> None:
    import linearity

    line = linearity.straight_line((1, 2, 4), (3.0, 5.0, 9.0))
    assert (line.slope, line.offset, line.r2) == pytest.approx((2, 1, 1))
    assert linearity.straight_line((1, 2, 3, 4), (1, 4, 9, 16)).r2 < 0.99


def test_linearity(speed: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import linearity

    monkeypatch.setattr(linearity, "PLOT", tmp_path / "linearity.svg")
    monkeypatch.setattr(linearity, "_FIXED", {"images": 8, "iterations": 1, "depth": 1})
    linearity.main(["--record"], {"images": (8, 16, 24), "iterations": (1, 2, 3)})
    assert [row["quantity"] for row in speed.read()["linearity"]["rows"]] == ["images", "iterations"]
    picture = (tmp_path / "linearity.svg").read_text()
    assert picture.count("<circle") == 6
    assert picture.startswith("<svg")


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes are not started here; what they would report is put in their place."""
    import memory

    monkeypatch.setattr(memory, "imported", lambda: 800_000_000)
    monkeypatch.setattr(memory, "peak", lambda arguments: 900_000_000)
    row = memory.measure(["--config", str(ROOT / "configs" / "quickstart.yaml")])
    assert (row["run"], row["peak beyond libraries, MB"]) == ("quickstart", 100)
    network, images, caches = memory.needed(["--config", str(ROOT / "configs" / "quickstart.yaml")])
    assert network == pytest.approx(4 * 460_000, rel=0.05)
    assert caches / images == pytest.approx(2 * 65 * 96 / (3 * 32 * 32))
    assert row["ratio to network + caches"] == pytest.approx(1e8 / (network + caches), rel=0.01)


def test_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs are not started here; what they would leave is put in their place."""
    import processes

    def fit(arguments: Sequence[str], count: int, directory: Path) -> dict[str, float]:
        directory.mkdir(exist_ok=True)
        read = {"stage1": "float" if processes.FLOAT_INPUTS[1] in arguments else "quantized", "stage3": "mixed"}
        steps = [{"name": "stage2"}, *({"name": name, "inputs": {"read": value}} for name, value in read.items())]
        run = {"run": {"model": {"recipe": {"steps": steps}}}}
        (directory / "calibration.json").write_text(json.dumps(run))
        (directory / "quantized.safetensors").write_bytes(b"the same")
        return {"stage1": 19.0 / count, "stage3": 14.0 if count == 1 else 10.0}

    monkeypatch.setattr(processes, "fit", fit)
    monkeypatch.setattr(processes, "weight_codes", lambda directory: torch.tensor([1, 2, 3]))
    first, third = processes.measure("short", processes.DIGITS, pairs=2)
    assert (first["ratio"], third["ratio"]) == (2.0, 1.4)
    assert (first["shared"], first["wanted"], third["wanted"]) == ("images", 1.6, 1.6)
    assert (third["same codes, %"], third["files"]) == (100, "equal")
    first, third = processes.measure("units", (*processes.DIGITS, *processes.FLOAT_INPUTS), pairs=1)
    assert (first["shared"], first["wanted"], third["shared"]) == ("units", 1.8, "images")


@pytest.mark.parametrize(("seconds", "status"), [(5.0, 0), (8.0, 1)])
def test_processes_fail_where_a_stage_is_too_slow(
    seconds: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import processes

    row = {"run": "short", "ratio": 10.0 / seconds, "wanted": 1.6, "same codes, %": 100.0}
    monkeypatch.setattr(processes, "measure", lambda name, arguments, pairs: [row])
    monkeypatch.setattr("sys.argv", ["processes.py", "--config", "some.yaml"])
    assert processes.run() == status
    assert "| short |" in capsys.readouterr().out


def test_deployment(speed: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import deployment

    from isvit_lightning.run.benchmark import pytorch

    monkeypatch.setattr(pytorch, "missing_compiler", lambda device: "there is no C++ compiler c")
    monkeypatch.setitem(deployment.NETWORKS, "deit_small", "test_vit")
    deployment.main(
        ["deit_small", "--threads", "1", "--batches", "1,2", "--engines", "pytorch", "--repeats", "2", "--record"]
    )
    rows = speed.read()["deployment_deit_small"]["rows"]
    assert [(row["form"], row["images"]) for row in rows[:3]] == [
        (name, "1") for name in ("float, eager", "simulated, eager", "integer, eager")
    ]
    assert all(float(row["to float"]) > 0 for row in rows if row["ms"])
    sizes = {row["form"]: row for row in speed.read()["deployment_deit_small_size"]["rows"]}
    assert float(sizes["integer, eager"]["file, MB"]) < float(sizes["float, eager"]["file, MB"])
    assert "| integer, eager |" in capsys.readouterr().out


def test_what_deployment_wants_is_named_as_forms_are() -> None:
    import deployment

    from isvit_lightning.run.benchmark.timing import Speed

    assert deployment.wanted_of("vit_base", Speed("PyTorch", "integer, compiled", 1, 1)) == "2.3"
    assert deployment.wanted_of("vit_base", Speed("PyTorch", "integer, eager", 1, 1)) == ""
