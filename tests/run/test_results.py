"""``results.json`` has exactly the keys that are promised, and the table shows the same figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from isvit_lightning.networks import open_quantized
from isvit_lightning.recipe.method import Bits, Method
from isvit_lightning.run.results import Results, console, count_codes, float_size, peak_memory, versions
from tests.helpers import tiny_swin, tiny_vit

KEYS = {
    "network",
    "method",
    "bits",
    "n_codes",
    "metrics",
    "images",
    "seed",
    "iterations",
    "seconds",
    "rolled_back",
    "peak_memory_bytes",
    "size_bytes",
    "versions",
}


def filled(path: Path) -> Results:
    results = Results(path, "net", "isvit", Bits(3, 4), {"calibration": 16, "evaluation": 20}, 7, 5)
    results.metrics = {"float": {"top1": 99.0, "top5": 100.0}, "quantized": {"top1": 95.125, "top5": 99.5}}
    results.seconds = {"calibrate": 0.123456, "stage1": 1.0, "stage3": 2.0, "total": 3.004}
    results.size_bytes = {"float": 2_000_000, "packed": 250_000}
    results.n_codes = {"weight": 8, "activation": 16, "attn_prob": 17}
    return results


def test_the_file_has_exactly_these_keys(tmp_path: Path) -> None:
    results = filled(tmp_path / "run" / "results.json")
    results.write()
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert content.keys() == KEYS
    assert content["bits"] == {"weight": 3, "activation": 4}
    assert content["images"] == {"calibration": 16, "evaluation": 20}
    assert content["seconds"] == {"calibrate": 0.12, "stage1": 1.0, "stage3": 2.0, "total": 3.0}
    assert content["size_bytes"] == {"float": 2_000_000, "packed": 250_000}
    assert content["metrics"] == results.metrics
    assert (content["network"], content["method"], content["seed"], content["iterations"]) == ("net", "isvit", 7, 5)
    assert content["peak_memory_bytes"] > 1_000_000


def test_a_run_that_has_just_begun_can_be_written(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json", "net", "isvit", Bits(), {"calibration": 1, "evaluation": 0}, 0, 1)
    results.write()
    assert json.loads(results.path.read_text()).keys() == KEYS


def test_the_table_shows_what_the_file_holds(tmp_path: Path) -> None:
    out = Console(width=140, record=True)
    out.print(filled(tmp_path / "results.json").table())
    text = out.export_text()
    row = next(line for line in text.splitlines() if "I&S-ViT" in line)
    for part in ("95.12", "99.50", "3/4", "17", "0.25 MB", "3.0"):
        assert part in row
    row = next(line for line in text.splitlines() if "float" in line)
    for part in ("99.00", "100.00", "32/32", "2.00 MB"):
        assert part in row
    assert "20 evaluation images" in text


@pytest.mark.parametrize("extra", [0, 1])
def test_codes_are_counted_by_kind(extra: int) -> None:
    model = open_quantized(tiny_vit(), Bits(3, 4), Method(extra_softmax_codes=extra)).model
    assert count_codes(model) == {"weight": 8, "activation": 16, "attn_prob": 16 + extra}


def test_float_size_is_four_bytes_per_value() -> None:
    model = tiny_swin()
    assert float_size(model) == 4 * sum(tensor.numel() for tensor in model.state_dict().values())


def test_versions_name_what_decides_a_result() -> None:
    found = versions()
    assert {"python", "torch", "lightning", "timm", "torchmetrics", "isvit-lightning"} == found.keys()
    assert found["torch"][0].isdigit()
    assert versions(("nonsense-of-no-index",))["nonsense-of-no-index"] == "not installed"


def test_memory_is_at_least_that_of_this_process() -> None:
    assert peak_memory() > 50_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is the larger of both")
def test_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    held = torch.ones(2**28)  # 1 GB, more than the libraries
    program = "from isvit_lightning.run.results import peak_memory; print(peak_memory())"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(printed) < peak_memory() - held.nbytes / 2


def test_a_pipe_gets_whole_rows() -> None:
    assert console().is_terminal or console().width == 140
