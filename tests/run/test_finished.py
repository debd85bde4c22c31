"""What is done with a finished run."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isvit_lightning.errors import IsvitError
from isvit_lightning.run.finished import measure, predict
from isvit_lightning.sources.source import NetworkSource
from tests.run.test_runner import content, runner
from tests.storage.test_lock import holding


@pytest.fixture(scope="module", name="finished")
def a_finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    runner(directory).fit(evaluate=True, baselines=[])
    return directory


def test_a_test_measures_what_the_run_did(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, before = runner(finished), list(finished.iterdir())
    expected = content(finished)["metrics"]["quantized"]
    with holding(tmp_path / "run.lock"):  # nothing is written, so that nobody is asked
        (finished / "run.lock").symlink_to(tmp_path / "run.lock")
        assert measure(run, str(finished)) == expected
        (finished / "run.lock").unlink()
    assert list(finished.iterdir()) == before
    assert run.measured == ["float", "artifact"]
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{finished}: vit_digits, W3/A4, isvit"
    assert f"top-1 {expected['top1']:.2f} %" in out
    assert f"agreement {expected['agreement']:.2f} %  KL {expected['kl']:.4f}  on 20 images" in out


def test_a_test_of_the_float_network(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runner(finished)
    assert measure(run, None) == content(finished)["metrics"]["float"]
    assert run.measured == ["float"]
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "vit_digits, float"
    assert "KL" not in out


def test_another_float_network_is_not_compared_with(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that was trained on, or the file of a run with other weights."""
    build: Callable[[NetworkSource], Any] = NetworkSource.build
    other = {"name": "vit_digits", "sha256": "other"}
    monkeypatch.setattr(NetworkSource, "build", lambda source: replace(build(source), fingerprint=other))
    run = runner(finished)
    with pytest.raises(
        IsvitError, match=rf'^{finished} was .* \(weights of model\.network: ".*" → "other"\), expected'
    ):
        measure(run, str(finished))
    assert run.measured == []


def test_a_test_needs_no_float_network(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(_: NetworkSource) -> None:
        raise IsvitError("The weights are away, expected them here: look elsewhere.")

    monkeypatch.setattr(NetworkSource, "build", away)
    expected = content(finished)["metrics"]["quantized"]
    assert measure(runner(finished), str(finished)) == {name: expected[name] for name in ("top1", "top5")}
    assert "KL" not in capsys.readouterr().out


def test_predictions_lie_in_the_run(finished: Path, tmp_path: Path) -> None:
    assert predict(runner(tmp_path), str(finished)) == finished / "predictions.csv"
    assert predict(runner(tmp_path), None) == tmp_path / "predictions.csv"
    rows = [list(csv.reader((folder / "predictions.csv").open())) for folder in (finished, tmp_path)]
    assert [row[0] for row in rows[0]] == [row[0] for row in rows[1]]
    assert len(rows[0]) == 21
    assert rows[0] != rows[1]
    (finished / "predictions.csv").unlink()
