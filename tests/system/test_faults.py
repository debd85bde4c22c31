"""What a machine runs out of becomes a sentence, and what nobody expected one that names a file."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.system.faults import DefectError, is_out_of_memory, sentences
from isvit_lightning.system.termination import TerminatedError

MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("named", [True, False])
def test_a_full_disk_names_the_place_and_the_option(code: int, named: bool, tmp_path: Path) -> None:
    file = str(tmp_path / "logs" / "metrics.csv")
    with (
        pytest.raises(IsvitError, match=r"is full \(.*\), expected .* set trainer\.default_root_dir") as caught,
        sentences(tmp_path),
    ):
        raise OSError(code, os.strerror(code), file) if named else OSError(code, os.strerror(code))
    assert (file if named else str(tmp_path)) in str(caught.value)


@pytest.mark.parametrize("error", MEMORY, ids=["torch", "cuda", "cpu", "python"])
def test_a_full_memory_names_the_options(error: Exception, tmp_path: Path) -> None:
    assert is_out_of_memory(error)
    with (
        pytest.raises(IsvitError, match=r"Memory ran out \(.*\), expected .*data\.batch_size.*range_images") as caught,
        sentences(tmp_path),
    ):
        raise error
    assert "\n" not in str(caught.value)
    of_cpu = isinstance(error, MemoryError) or "CPU" in str(error)
    assert ("set trainer.accelerator to cpu" in str(caught.value)) is not of_cpu


def test_a_unit_that_cannot_be_compiled_names_the_option(tmp_path: Path) -> None:
    def backend(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Any:
        raise RuntimeError("Python.h: No such file or directory\nmore")

    with (
        pytest.raises(IsvitError, match=r"be compiled \(.*\), expected .* set model\.compile to false") as caught,
        sentences(tmp_path),
    ):
        torch.compile(torch.nn.Linear(2, 2), backend=backend)(torch.ones(1, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(errno.EACCES, "denied", "/some/file"), r"/some/file cannot be used \(denied\), expected "),
        (ModuleNotFoundError("no wandb"), r"A package is missing \(no wandb\), expected it to be installed: "),
    ],
)
def test_what_the_user_can_mend_is_told(error: Exception, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match=sentence) as caught, sentences(tmp_path):
        raise error
    assert (caught.value.status, list(tmp_path.iterdir())) == (2, [])


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "denied"), RuntimeError("shapes\ndiffer"), KeyError("x")]
)
def test_a_fault_of_the_program_names_a_file_with_its_traceback(error: Exception, tmp_path: Path) -> None:
    assert not is_out_of_memory(error)
    told = pytest.raises(DefectError, match=rf"failed \({type(error).__name__}: .*\), expected .*: ")
    with told as caught, sentences(tmp_path / "run"):
        raise error
    file = tmp_path / "run" / "traceback.txt"
    assert str(file) in str(caught.value)
    assert caught.value.status == 1
    assert "raise error" in file.read_text()
    assert "\n" not in str(caught.value)


def test_a_traceback_that_cannot_be_written_is_in_the_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = pytest.raises(DefectError, match=r"(?s)cannot be written .*Traceback.*KeyError")
    with told, sentences(tmp_path / "file" / "run"):
        raise KeyError("x")


def test_sentences_and_lost_connections_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isvit_lightning.system.faults.lost_connection", lambda error: str(error) == "gloo")
    for error in (IsvitError("own"), RuntimeError("gloo"), TerminatedError()):
        with pytest.raises(type(error)) as caught, sentences(tmp_path):
            raise error
        assert caught.value is error
