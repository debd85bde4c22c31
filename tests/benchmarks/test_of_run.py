"""The tables of a benchmarked run."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_the_tables_of_a_run_stand_on_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import of_run
    import speed

    monkeypatch.setattr(speed, "RECORD", tmp_path / "docs" / "speed.yaml")
    monkeypatch.setattr(speed, "PAGE", tmp_path / "docs" / "speed.md")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "speed.md").write_text("# Speed\n")
    (tmp_path / "README.md").write_text("<!-- mine_speed -->\n<!-- /mine_speed -->\n")
    row = {"engine": "PyTorch", "form": "integer"}
    content = {
        "speed": [
            {**row, "threads": 1, "batch": 8, "milliseconds": 2.5, "images_per_second": 400.0, "ratio": 3.25},
            {**row, "threads": 1, "batch": 1, "milliseconds": None, "images_per_second": None, "ratio": None},
        ],
        "forms": [{"engine": "PyTorch", "name": "integer", "file_bytes": 2_000_000}],
        "parity": [{**row, "metrics": {"top1": 90.0, "agreement": 95.0, "kl": 0.01}}],
    }
    (tmp_path / "benchmark.json").write_text(json.dumps(content))
    of_run.main([f"mine={tmp_path}", "--record"])
    printed = capsys.readouterr().out
    assert "| PyTorch | integer | 1 | 8 | 2.5 | 400 | 3.25 |" in printed
    assert "| PyTorch | integer | 1 | 1 |  |  |  |" in printed
    assert "| PyTorch | integer | 2 | 90 | 95 | 0.01 |  |" in printed
    assert "| 3.25 |" in (tmp_path / "README.md").read_text()
    for name in ("of_run", "speed"):
        sys.modules.pop(name)
