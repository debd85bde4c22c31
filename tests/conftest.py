"""One thread, one seed, and a finished run for all who only look at it."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from isvit_lightning.program import main
from tests.command_line import QUICKSTART, SMALL

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def engines(request: pytest.FixtureRequest) -> None:
    """Tests of the extra export are skipped where it is not installed."""
    if request.node.get_closest_marker("export"):
        for package in ("onnx", "onnxruntime", "onnxscript", "openvino"):
            pytest.importorskip(package)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts the tests and what they start, also where a shell began them in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def quickstart_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the quickstart, tiny; not to be changed."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])
        assert main(["fit", "--config", QUICKSTART, *SMALL, "--trainer.default_root_dir", str(directory)]) == 0
    return directory


@pytest.fixture
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """``main`` replaces the process's arguments."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
