"""Whoever writes to a run directory is alone there, before anything is read."""

from pathlib import Path

import pytest

from tests.command_line import QUICKSTART, refused
from tests.storage.test_lock import holding

pytestmark = pytest.mark.usefixtures("own_arguments")
WRITING = ["fit", "predict", "compare"]


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isvit_lightning.run.runner.Runner.load_network", None)


@pytest.mark.parametrize("verb", WRITING)
def test_a_second_run_is_refused(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with holding(tmp_path / "run.lock"):
        line = refused([verb, "--config", QUICKSTART, "--trainer.default_root_dir", str(tmp_path)], capsys)
    assert f"Another run writes to {tmp_path} (process 1 on elsewhere), expected one at a time" in line


@pytest.mark.parametrize("verb", WRITING)
def test_a_directory_that_is_none_is_refused(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    directory = str(tmp_path / "file" / "run")
    line = refused([verb, "--config", QUICKSTART, "--trainer.default_root_dir", directory], capsys)
    told = f"{directory} cannot be written to ({tmp_path / 'file'} is no folder), expected a folder that is writable or"
    assert told in line
    assert line.endswith("change trainer.default_root_dir.")


def test_a_home_folder_is_meant_where_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").touch()
    line = refused(["fit", "--config", QUICKSTART, "--trainer.default_root_dir=~/run"], capsys)
    assert f"{tmp_path / 'run'} is no folder" in line
