"""One run at a time writes to a folder, and a killed one leaves it free."""

import contextlib
import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from isvit_lightning.errors import IsvitError
from isvit_lightning.storage.lock import locked

HOLDING = """
import fcntl, os, sys, time
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("process 1 on elsewhere", file=file, flush=True)
if len(sys.argv) > 2 and os.fork() == 0:  # as a process that loads images: it lives on
    os.close(1)
    time.sleep(5)
    os._exit(0)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock at ``path``."""
    command = [sys.executable, "-c", HOLDING, str(path), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_is_made_and_the_lock_goes_with_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    for _ in range(2):
        with locked(folder):
            assert (folder / "run.lock").read_text().startswith(f"process {os.getpid()} on ")
            (folder / "results.json").touch()
        assert [path.name for path in folder.iterdir()] == ["results.json"]


def test_a_folder_that_stays_empty_is_removed_again(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        pass
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("options", [(), ("and a child",)], ids=["alone", "with_a_child"])
def test_the_second_is_refused_until_the_first_is_killed(options: tuple[str, ...], tmp_path: Path) -> None:
    with holding(tmp_path / "run.lock", *options) as first:
        with (
            pytest.raises(
                IsvitError,
                match=rf"^Another run writes to {tmp_path} \(process 1 on elsewhere\), expected one at a time: ",
            ),
            locked(tmp_path),
        ):
            pass
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        with locked(tmp_path):
            assert "elsewhere" not in (tmp_path / "run.lock").read_text()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run before it removes the file when it is open already, but not locked."""
    lockf, seen = fcntl.lockf, []

    def late(descriptor: int, operation: int) -> None:
        if not seen:
            (tmp_path / "run.lock").unlink()
        seen.append(descriptor)
        lockf(descriptor, operation)

    monkeypatch.setattr(fcntl, "lockf", late)
    with locked(tmp_path):
        assert len(seen) == 2
        assert (tmp_path / "run.lock").exists()


def test_where_nothing_can_be_locked_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    caplog.set_level(logging.WARNING)
    with locked(tmp_path):
        pass
    assert caplog.messages == [f"{tmp_path} cannot be locked (No locks available): start no other run there"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", r"{}/file is no folder"),
        ("file/run", r"{}/file is no folder"),
        ("dangling", r"{}/dangling is a link that leads to no folder"),
        ("dangling/run", r"{}/dangling is a link that leads to no folder"),
        ("round", r"{}/round is a link that leads to no folder"),
        ("to_file/run", r"{}/to_file is a link that leads to no folder"),
        ("a" * 300, "File name too long"),
        ("/proc/run", "No such file or directory"),
    ],
)
def test_a_place_that_is_none_is_refused(place: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (tmp_path / "to_file").symlink_to(tmp_path / "file")
    before = sorted(tmp_path.iterdir())
    told = rf"{place[:9]}.* cannot be written to \({reason.format(tmp_path)}\), expected .*: change trainer\.default_"
    with pytest.raises(IsvitError, match=told), locked(tmp_path / place):
        pass
    assert sorted(tmp_path.iterdir()) == before


def test_folders_below_that_are_none_are_refused_too(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    with locked(tmp_path, ("logs", "cells")):
        pass
    for name, make in (("logs", Path.touch), ("cells", lambda path: path.symlink_to("nowhere"))):
        with contextlib.suppress(OSError):
            (tmp_path / name).rmdir()
        make(tmp_path / name)
        told = rf"^{tmp_path} cannot be written to \({tmp_path / name} is "
        with pytest.raises(IsvitError, match=told), locked(tmp_path, (name,)):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells", "logs"]


@pytest.mark.parametrize("address", ["s3://bucket/run", "hdfs://host/run", "file:///run"])
def test_an_address_is_no_folder(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = "is an address, expected a folder of this machine: change"
    with pytest.raises(IsvitError, match=told), locked(Path(address)):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_nobody_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system refuses it to anybody but its administrator, who may run the tests."""

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(IsvitError, match=r"cannot be written to \(Permission denied\), expected"), locked(tmp_path):
        pass
