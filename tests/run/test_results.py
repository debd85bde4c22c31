"""``results.json`` has exactly the keys that are promised, and the table shows the same figures."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from isvit_lightning.recipe import Bits
from isvit_lightning.run.results import Results, console, float_size, line_of, versions
from tests.helpers import tiny_swin

KEYS = {
    "network",
    "recipe",
    "bits",
    "audit",
    "n_values",
    "metrics",
    "images",
    "seed",
    "iterations",
    "evaluation",
    "seconds",
    "baseline_seconds",
    "rolled_back",
    "peak_memory_bytes",
    "size_bytes",
    "versions",
}


COLUMNS = (("top1", "top-1 %"), ("top5", "top-5 %"), ("agreement", "agreement %"), ("kl", "KL"))


def filled(path: Path) -> Results:
    images = {"calibration": 16, "evaluation": 20}
    results = Results(path, "net", "own_recipe", Bits(3, 4), images, 7, 5, evaluation="hash", columns=COLUMNS)
    results.metrics = {
        "float": {"top1": 99.0, "top5": 100.0},
        "round_to_nearest": {"top1": 45.0, "top5": 60.0, "agreement": 44.0, "kl": 1.5},
        "first_step": {"top1": 98.0, "top5": 99.0, "agreement": 97.0, "kl": 0.012345},
        "quantized": {"top1": 95.125, "top5": 99.5, "agreement": 96.0, "kl": 0.25},
    }
    results.widths["first_step"] = "32/4"
    results.seconds = {"calibrate": 0.123456, "first_step": 1.0, "stage3": 2.0, "total": 3.004}
    results.baseline_seconds = {"round_to_nearest": 0.7}
    results.size_bytes = {"float": 2_000_000, "packed": 250_000}
    results.audit = {"n_codes": {"weight": 8, "attn_prob": 17}, "ranges": "static"}
    results.n_values = {
        "round_to_nearest": {"attn_prob": 16},
        "first_step": {"value": 16},
        "quantized": {"attn_prob": 15},
    }
    results.rolled_back = {"stage3": ["head"]}
    return results


def row_of(results: Results, name: str) -> str:
    """The row of the printed table with this title."""
    out = Console(width=140, record=True)
    out.print(results.table())
    return next(line for line in out.export_text().splitlines() if name in line)


def test_the_file_has_exactly_these_keys(tmp_path: Path) -> None:
    results = filled(tmp_path / "run" / "results.json")
    results.write()
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert content.keys() == KEYS
    assert content["bits"] == {"weight": 3, "activation": 4}
    assert content["images"] == {"calibration": 16, "evaluation": 20}
    assert content["seconds"] == {"calibrate": 0.12, "first_step": 1.0, "stage3": 2.0, "total": 3.0}
    assert content["size_bytes"] == {"float": 2_000_000, "packed": 250_000}
    assert content["metrics"] == results.metrics
    assert (content["network"], content["recipe"], content["seed"]) == ("net", "own_recipe", 7)
    assert content["iterations"] == 5
    assert content["audit"] == {"n_codes": {"weight": 8, "attn_prob": 17}, "ranges": "static"}
    assert content["rolled_back"] == {"stage3": ["head"]}
    assert content["peak_memory_bytes"] > 1_000_000


def test_a_run_that_has_just_begun_can_be_written(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json", "net", "isvit", Bits(), {"calibration": 1, "evaluation": 0}, 0, 1)
    results.write()
    assert json.loads(results.path.read_text()).keys() == KEYS


def test_the_table_shows_what_the_file_holds(tmp_path: Path) -> None:
    results = filled(tmp_path / "results.json")
    rows = {
        "own recipe": ("95.12", "99.50", "96.00", "0.2500", "3/4", "15", "0.25 MB", "3.0"),
        "float": ("99.00", "100.00", "32/32", "2.00 MB"),
        "first step (float weights)": ("98.00", "99.00", "97.00", "0.0123", "32/4", "2.00 MB", "1.0"),
        "round to nearest": ("45.00", "60.00", "44.00", "1.5000", "3/4", "16", "0.25 MB", "0.7"),
    }
    for name, parts in rows.items():
        row = row_of(results, name)
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert [cell for cell in cells[1:] if cell] == list(parts)
    assert [str(column.header) for column in results.table().columns[1:5]] == [title for _, title in COLUMNS]
    assert results.table().title == "net, 20 evaluation images"


def test_columns_that_nobody_measured_are_left_out(tmp_path: Path) -> None:
    results = filled(tmp_path / "results.json")
    for metrics in results.metrics.values():
        metrics.pop("top1")
        metrics.pop("top5")
    headers = [str(column.header) for column in results.table().columns]
    assert headers == ["", "agreement %", "KL", "bits W/A", "softmax values", "size", "seconds"]


def test_an_earlier_run_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    earlier = filled(path)
    earlier.write()
    images = dict(earlier.images)
    results = Results(path, "net", "own_recipe", Bits(3, 4), images, 7, 5, evaluation="hash", columns=COLUMNS)
    results.metrics["float"] = {"top1": 1.0}
    results.restore()
    assert results.metrics == earlier.metrics
    assert results.seconds == {name: round(value, 2) for name, value in earlier.seconds.items()}
    assert results.baseline_seconds == {"round_to_nearest": 0.7}
    assert (results.size_bytes, results.audit) == (earlier.size_bytes, earlier.audit)
    assert results.n_values == earlier.n_values
    assert results.rolled_back == earlier.rolled_back


@pytest.mark.parametrize(("count", "evaluation"), [(21, "hash"), (20, "other"), (0, "")])
def test_what_was_measured_on_other_images_is_not(count: int, evaluation: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    filled(path).write()
    images = {"calibration": 16, "evaluation": count}
    results = Results(path, "net", "own_recipe", Bits(3, 4), images, 7, 5, evaluation=evaluation)
    results.restore()
    assert (results.metrics, results.seconds, results.size_bytes, results.audit) == ({}, {}, {}, {})
    assert results.rolled_back == {"stage3": ["head"]}


@pytest.mark.parametrize("content", [None, "{", "[1]", "3"])
def test_nothing_is_taken_over_where_nothing_is(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    results = Results(tmp_path / "results.json", "net", "isvit", Bits(), {"calibration": 1, "evaluation": 0}, 0, 1)
    results.restore()
    assert (results.metrics, results.rolled_back) == ({}, {})


def test_a_line_tells_the_columns_that_there_are() -> None:
    columns = (("top1", "top-1 %"), ("top5", "top-5 %"), ("kl", "KL"))
    assert line_of({"kl": 0.01234, "top1": 92.454, "loss": 3.0}, columns) == "top-1 92.45 %  KL 0.0123"


def test_float_size_is_four_bytes_per_value() -> None:
    model = tiny_swin()
    assert float_size(model) == 4 * sum(tensor.numel() for tensor in model.state_dict().values())


def test_versions_name_what_decides_a_result() -> None:
    found = versions()
    assert {"python", "torch", "lightning", "timm", "torchmetrics", "isvit-lightning"} == found.keys()
    assert found["torch"][0].isdigit()
    assert versions(("nonsense-of-no-index",))["nonsense-of-no-index"] == "not installed"


def test_a_pipe_gets_whole_rows() -> None:
    assert console().is_terminal or console().width == 300
