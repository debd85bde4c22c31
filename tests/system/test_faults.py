"""A full disk and a full memory become sentences; everything else passes through."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.system.faults import is_out_of_memory, sentences

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
    "error", [PermissionError(errno.EACCES, "denied"), RuntimeError("shapes differ"), KeyError("x")]
)
def test_other_errors_pass(error: Exception, tmp_path: Path) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, sentences(tmp_path):
        raise error
    assert caught.value is error
