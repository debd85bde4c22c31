"""A run that is set aside is whole, below the directory that it made room in."""

import errno
from pathlib import Path
from typing import Any

import pytest

from isvit_lightning.errors import IsvitError
from isvit_lightning.storage.aside import set_aside


def run_in(folder: Path, text: str = "of the old run") -> Path:
    for name in ("calibration.json", "config.yaml", "quantized.safetensors", "checkpoints/stage2.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_all_files_of_a_run_are_moved_and_no_others(tmp_path: Path) -> None:
    run = files(run_in(tmp_path))
    (tmp_path / "notes.txt").write_text("of the user")
    (tmp_path / "logs").symlink_to("/nowhere")
    assert set_aside(tmp_path) == tmp_path / "previous-1"
    assert files(tmp_path / "previous-1") == run | {"logs"}
    assert {path.name for path in tmp_path.iterdir()} == {"previous-1", "notes.txt"}


def test_earlier_ones_stay(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (run_in(tmp_path, str(number)) / "previous-3").mkdir(exist_ok=True)
        set_aside(tmp_path)
    found = {path.name: (path / "config.yaml").exists() for path in tmp_path.iterdir()}
    assert found == {"previous-1": True, "previous-2": True, "previous-3": False, "previous-4": True}
    assert [(tmp_path / f"previous-{number}" / "config.yaml").read_text() for number in (1, 2, 4)] == ["1", "2", "3"]


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_whoever_is_killed_on_the_way_leaves_a_run_that_is_not_finished(
    moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, done = Path.rename, []

    def stop(path: Path, target: Path) -> None:
        if len(done) > moved:
            raise OSError(errno.EACCES, "Permission denied")
        done.append(path)
        rename(path, target)

    run_in(tmp_path)
    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(
        IsvitError, match=r"cannot be set aside in .*/previous-1 \(Permission denied\), expected .*: move"
    ):
        set_aside(tmp_path)
    assert not (tmp_path / "quantized.safetensors").exists()
    assert (tmp_path / "calibration.json").exists()


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run_in(tmp_path)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(IsvitError, match="cannot be set aside"):
        set_aside(tmp_path)
    assert (tmp_path / "quantized.safetensors").exists()
