"""The peak of this process: at least what it held, not that of another one, and forgotten when asked to."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isvit_lightning.system.memory import forget_peak, peak_memory

GIGABYTE = 2**28
"""Numbers in float32."""
SLACK = 2**23
"""What Linux may be late in counting."""
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system tells less")


def test_memory_is_at_least_that_of_this_process() -> None:
    held = torch.ones(GIGABYTE)
    assert peak_memory() > held.nbytes + 50_000_000


@LINUX
def test_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    held = torch.ones(GIGABYTE)  # more than the libraries
    program = "from isvit_lightning.system.memory import peak_memory; print(peak_memory())"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(printed) < peak_memory() - held.nbytes / 2


def test_the_peak_stays_when_memory_is_given_back() -> None:
    held = torch.ones(GIGABYTE)
    size = held.nbytes
    before = peak_memory()
    del held
    assert peak_memory() > before - SLACK > size


@LINUX
def test_a_forgotten_peak_begins_anew() -> None:
    held = torch.ones(GIGABYTE)
    size, before = held.nbytes, peak_memory()
    del held
    forget_peak()
    after = peak_memory()
    assert after < before - size / 2
    assert torch.ones(GIGABYTE).nbytes == size
    assert peak_memory() > after + size / 2


def test_a_system_that_forgets_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> int:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", forbidden)
    before = peak_memory()
    forget_peak()
    assert peak_memory() > before - SLACK


def test_an_accelerator_that_was_used_counts_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0 if forgotten else 12345)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: forgotten.append(True))
    assert peak_memory() == 12345
    forget_peak()
    assert forgotten == [True]
    assert peak_memory() > 50_000_000


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("win32", 1024)])
def test_elsewhere_the_system_is_asked_in_its_own_unit(
    platform: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda _: type("Usage", (), {"ru_maxrss": 7}))
    assert peak_memory() == 7 * unit
    monkeypatch.setattr(Path, "write_text", None)
    forget_peak()
