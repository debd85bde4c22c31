"""Interrupted runs of the command line: killed, stopped, changed, finished, and with several processes."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kills import QUICKSTART, SHORT, kill_and_resume, parts, start
from isvit_lightning.errors import IsvitError
from isvit_lightning.evaluation import Evaluator
from isvit_lightning.program import main
from isvit_lightning.run.resumption import begin
from isvit_lightning.storage.parts import Parts
from tests.command_line import refused

ROOT = Path(__file__).parents[2]
BLIND = [*SHORT, "--evaluate", "false"]


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``main`` replaces the process's arguments, and a handler of a signal must not outlive it."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    process = start(["fit", *SHORT, "--trainer.default_root_dir", str(folder / "run")], folder / "log")
    process.join()
    assert process.exitcode == 0, (folder / "log").read_text()
    return folder / "run"


def interrupted(folder: Path, at: str = "stage3-001", arguments: tuple[str, ...] = SHORT) -> Path:
    """Directory of a run that is killed once the part ``at`` is finished."""
    directory = folder / "run"
    process = start(["fit", *arguments, "--trainer.default_root_dir", str(directory)], folder / "log")
    while at not in parts(directory):
        assert process.exitcode is None, (folder / "log").read_text()
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not (directory / "quantized.safetensors").exists()
    return directory


def row(printed: str, name: str) -> list[str]:
    """Cells of a row of the printed table: title, four metrics, bits, softmax values, size, seconds."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "│" in line]
    (found,) = (cells for cells in rows if cells[0] == name)
    return found


def resume(directory: Path, *changes: str) -> int:
    return main(["fit", *SHORT, *changes, "--resume", "true", "--trainer.default_root_dir", str(directory)])


def test_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    tally = kill_and_resume(tmp_path, BLIND, kills=6)
    assert len(tally.kills) == 6
    assert tally.completed >= 1
    assert tally.different == 0


def test_what_is_finished_is_not_done_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    directory = interrupted(tmp_path)
    measured = json.loads((directory / "results.json").read_text())["metrics"]
    assert measured.keys() == {"float", "stage1"}
    caplog.set_level(logging.INFO)
    assert resume(directory) == 0
    lines = [record.getMessage() for record in caplog.records if " unit " in record.getMessage()]
    assert not [line for line in lines if not line.startswith("stage3")]
    assert lines[-1].startswith("stage3 unit 6/6 head")
    assert 1 <= len(lines) <= 4
    assert lines[0].startswith(f"stage3 unit {7 - len(lines)}/6")
    assert (directory / f"logs/stage3_from_unit_{7 - len(lines)}").is_dir()
    assert (directory / "logs/stage3").exists()
    assert (directory / "quantized.safetensors").read_bytes() == (finished / "quantized.safetensors").read_bytes()
    results, expected = (json.loads((run / "results.json").read_text()) for run in (directory, finished))
    assert results["metrics"] == expected["metrics"]
    assert results["seconds"]["stage1"] > 0
    printed = capsys.readouterr().out
    assert row(printed, "isvit")[5] == "3/3"
    # Measured before the kill: weights were float, as in the file of a float network.
    assert row(printed, "stage1 (float weights)")[5:8:2] == ["32/3", row(printed, "float")[7]]
    assert not (directory / "checkpoints").exists()


RATES = {stage: {"trainables": {"rate": 1e30}} for stage in ("stage1", "stage3")}
ABSURD = ("--model.recipe.changes", json.dumps(RATES))
"""A learning rate at which the loss of every unit becomes infinite."""


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What an undisturbed run with that rate tells."""
    directory = tmp_path_factory.mktemp("rolled_back") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])
        assert main(["fit", *BLIND, *ABSURD, "--trainer.default_root_dir", str(directory)]) == 0
    expected: dict[str, list[str]] = json.loads((directory / "results.json").read_text())["rolled_back"]
    return expected


@pytest.mark.parametrize("at", ["stage1-002", "stage3-001"])
def test_units_that_were_rolled_back_are_remembered(at: str, rolled_back: dict[str, list[str]], tmp_path: Path) -> None:
    blocks = ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    expected = rolled_back
    assert expected == {"stage1": [*blocks, "head"], "stage3": ["patch_embed.proj", *blocks, "head"]}
    directory = interrupted(tmp_path, at, (*BLIND, *ABSURD))
    assert resume(directory, "--evaluate", "false", *ABSURD) == 0
    assert json.loads((directory / "results.json").read_text())["rolled_back"] == expected


def test_a_finished_run_says_so_and_prints_the_table(
    finished: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = (finished / "quantized.safetensors").stat().st_mtime_ns
    assert resume(finished) == 0
    assert "is finished; nothing is left to resume" in caplog.text
    printed = capsys.readouterr().out
    assert row(printed, "isvit")[5] == "3/3"
    assert row(printed, "stage1 (float weights)")[5:8:2] == ["32/3", row(printed, "float")[7]]
    assert (finished / "quantized.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("--model.iterations", "4"), "model.iterations: 3 → 4"),
        (
            ("--model.recipe.changes", "{stage3: {trainables: {rate: 0.001}}}"),
            "trainables.rate: 0.012 → 0.001",
        ),
        (("--model.recipe.range_images", "7"), "model.recipe.range_images: 64 → 7"),
        (("--model.recipe.placement.head_in.bits", "8"), "model.recipe.placement.head_in.bits: null → 8"),
        (("--seed_everything", "1"), "seed_everything: 0 → 1"),
        (("--data.calibration_images", "17"), "calibration images.number: 16 → 17"),
        (("--model.network.name", "swin_digits"), 'model.network.name: "vit_digits" → "swin_digits"'),
    ],
)
def test_a_changed_run_is_refused(
    finished: Path, change: tuple[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(finished, *change) == 2
    message = capsys.readouterr().err
    assert told in message
    assert len(message) < 1000
    assert "choose another trainer.default_root_dir, or give --overwrite true, which sets its files aside" in message
    assert (finished / "quantized.safetensors").exists()


def test_a_run_that_is_overwritten_is_never_taken_for_the_old_one(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it goes on, a second one is refused; when it is killed, the directory holds no network."""
    directory = Path(shutil.copytree(finished, tmp_path / "run"))
    fit = [*BLIND, "--model.bits.weight", "8", "--trainer.default_root_dir", str(directory)]
    assert "model.bits.weight: 3 → 8" in refused(["fit", *fit], capsys)
    process = start(["fit", *fit, "--overwrite", "true"], tmp_path / "log")
    while "stage1-001" not in parts(directory):
        assert process.exitcode is None, (tmp_path / "log").read_text()
        time.sleep(0.02)
    second = refused(["fit", *fit, "--resume", "true"], capsys)
    assert second.startswith(f"isvit: Another run writes to {directory} (process {process.pid} on ")
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    for verb in ("test", "predict"):
        line = refused([verb, "--ckpt_path", str(directory)], capsys)
        assert f"{directory} holds no finished run, but an interrupted one" in line
    old = directory / "previous-1"
    assert (old / "quantized.safetensors").read_bytes() == (finished / "quantized.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(old)]) == 0
    assert f"{old}: vit_digits, W3/A3, isvit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "option", "old", "new"),
    [("test", "model.bits.weight", 3, 8), ("predict", "model.recipe.range_images", 64, 7)],
)
def test_a_network_of_another_run_is_refused(
    verb: str, option: str, old: int, new: int, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a run of an earlier version that was killed, or when somebody exchanged or edited a file."""
    directory = Path(shutil.copytree(finished, tmp_path / "run"))
    config, line = (directory / "config.yaml").read_text(), f" {option.rpartition('.')[2]}: {old}\n"
    assert config.count(line) == 1
    (directory / "config.yaml").write_text(config.replace(line, line.replace(str(old), str(new))))
    told = f"{directory} was calibrated otherwise than is configured ({option}: {old} → {new}), expected the same"
    assert told in refused([verb, "--ckpt_path", str(directory)], capsys)


def test_evaluation_may_change(finished: Path) -> None:
    assert resume(finished, "--data.batch_size", "7", "--data.workers", "1") == 0


def test_sigterm_ends_with_a_sentence(finished: Path, tmp_path: Path) -> None:
    directory, log = tmp_path / "run", tmp_path / "log"
    process = start(["fit", *SHORT, "--trainer.default_root_dir", str(directory)], log)
    while "stage1-001" not in parts(directory):
        assert process.exitcode is None, log.read_text()
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143
    last = log.read_text().strip().splitlines()[-1]
    assert last.startswith("isvit: The run was stopped by SIGTERM")
    assert "--resume true" in last
    assert "Traceback" not in log.read_text()
    assert resume(directory) == 0
    assert (directory / "quantized.safetensors").read_bytes() == (finished / "quantized.safetensors").read_bytes()


@pytest.mark.parametrize(("verb", "step"), [("test", "test_step"), ("predict", "predict_step")])
def test_sigterm_while_a_run_is_measured(
    verb: str, step: str, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, step, lambda *_: signal.raise_signal(signal.SIGTERM))
    assert main([verb, "--ckpt_path", str(finished)]) == 143
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("isvit: The run was stopped by SIGTERM")
    assert line.endswith("give the same command again.")


def test_two_processes_of_lightnings_launcher(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    several = ["--trainer.devices", "2", "--trainer.default_root_dir", str(directory)]
    command = [sys.executable, "-m", "isvit_lightning"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "fit", *SHORT, *several], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    assert row(done.stdout, "isvit")[5] == "3/3"
    assert done.stderr.count("stage3 unit 6/6") == 1
    results, expected = (json.loads((run / "results.json").read_text()) for run in (directory, finished))
    assert results["metrics"] == expected["metrics"]
    assert (directory / "quantized.safetensors").read_bytes() == (finished / "quantized.safetensors").read_bytes()
    run = json.loads((directory / "calibration.json").read_text())["run"]
    assert run["trainer"]["processes"] == 2


def test_afresh_sets_aside_what_an_earlier_run_left(tmp_path: Path) -> None:
    first = begin(tmp_path, {"seed": 0}, resume=True)
    assert (first.resumes, first.finished) == (False, False)
    (tmp_path / "calibration.json").write_text(json.dumps({"run": {"seed": 0}}))
    (tmp_path / "results.json").write_text("{}")
    first.parts.write("stage2", {})
    again = begin(tmp_path, {"seed": 0}, resume=True)
    assert (again.resumes, again.finished) == (True, False)
    assert parts(tmp_path) == ["stage2"]
    afresh = begin(tmp_path, {"seed": 0}, resume=False)
    assert (afresh.resumes, afresh.finished) == (False, False)
    assert parts(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "previous-1"}
    kept = begin(tmp_path / "previous-1", {"seed": 0}, resume=True)
    assert (kept.resumes, kept.finished) == (True, False)
    assert parts(tmp_path / "previous-1") == ["stage2"]


def test_another_run_needs_to_be_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begin(tmp_path, {"seed": 0}, resume=False).parts.write("stage2", {})
    (tmp_path / "calibration.json").write_text(json.dumps({"run": {"seed": 0}}))
    for resume in (False, True):
        with pytest.raises(
            IsvitError, match=r"holds another run \(seed: 0 → 1\), expected .* or give --overwrite true"
        ):
            begin(tmp_path, {"seed": 1}, resume)
    assert parts(tmp_path) == ["stage2"]
    caplog.set_level(logging.INFO)
    afresh = begin(tmp_path, {"seed": 1}, resume=True, overwrite=True)
    assert (afresh.resumes, afresh.finished, parts(tmp_path)) == (False, False, [])
    assert parts(tmp_path / "previous-1") == ["stage2"]
    folder = tmp_path / "previous-1"
    command = f"isvit fit --config {folder}/config.yaml --trainer.default_root_dir {folder} --resume true"
    assert caplog.messages == [f"the unfinished run in {tmp_path} is now in {folder}; {command} goes on with it"]


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"run": 3}', '{"run": null}', "{}"])
def test_a_network_of_nobody_knows_whom_is_not_written_over(content: str | None, tmp_path: Path) -> None:
    (tmp_path / "quantized.safetensors").write_bytes(b"of an earlier run")
    if content is not None:
        (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(
        IsvitError, match=r"holds another run \(calibration\.json is missing or damaged\), expected one"
    ):
        begin(tmp_path, {"seed": 0}, resume=True)
    begin(tmp_path, {"seed": 0}, resume=False, overwrite=True)
    assert (tmp_path / "previous-1" / "quantized.safetensors").read_bytes() == b"of an earlier run"


def test_a_run_that_has_done_nothing_is_not_kept(tmp_path: Path) -> None:
    begin(tmp_path, {"seed": 0}, resume=False)
    (tmp_path / "calibration.json").write_text(json.dumps({"run": {"seed": 0}}))
    assert not begin(tmp_path, {"seed": 1}, resume=False).resumes
    assert not (tmp_path / "previous-1").exists()


def test_a_run_is_finished_once_its_parts_are_gone(tmp_path: Path) -> None:
    kept = begin(tmp_path, {"seed": 0}, resume=False).parts
    (tmp_path / "calibration.json").write_text(json.dumps({"run": {"seed": 0}}))
    (tmp_path / "quantized.safetensors").write_bytes(b"")
    assert not begin(tmp_path, {"seed": 0}, resume=True).finished
    kept.clear()
    assert begin(tmp_path, {"seed": 0}, resume=True).finished
    with pytest.raises(IsvitError, match="seed: 0 → 1"):
        begin(tmp_path, {"seed": 1}, resume=True)
    assert isinstance(kept, Parts)
    assert QUICKSTART.exists()


def test_the_same_seed_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    assert main(["fit", *BLIND, "--trainer.default_root_dir", str(tmp_path)]) == 0
    assert (tmp_path / "quantized.safetensors").read_bytes() == (finished / "quantized.safetensors").read_bytes()
