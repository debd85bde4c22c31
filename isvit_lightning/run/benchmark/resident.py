"""Memory that a process grows by when an engine opens a file and computes one image."""

import contextlib
import ctypes
import gc
import importlib
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

_LOG = logging.getLogger(__name__)
_PATIENCE = 300.0
"""Seconds after which the other process is given up."""


def resident_bytes(
    opener: type[torch.nn.Module], packages: Sequence[str], path: Path, size: tuple[int, ...]
) -> int | None:
    """What opening ``path`` takes, in a process that does nothing else; None where the system does not tell.

    Args:
        opener: class that opens a file on a number of threads.
        packages: that it imports.
        path: the file.
        size: channels, height and width of an image.
    """
    if sys.platform != "linux":
        return None
    arguments = [f"{opener.__module__}:{opener.__qualname__}", ",".join(packages), str(path), ",".join(map(str, size))]
    try:
        printed = subprocess.run(  # noqa: S603 - this interpreter
            [sys.executable, "-m", __name__, *arguments], capture_output=True, text=True, check=True, timeout=_PATIENCE
        ).stdout
        return int(printed.split()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        _LOG.info("the memory of %s was not measured: %s", path.name, error)
        return None


def grown_by(opener: type[torch.nn.Module], packages: Sequence[str], path: Path, size: tuple[int, ...]) -> int:
    """Bytes that this process grows by.

    Args:
        opener: class that opens a file on a number of threads.
        packages: that it imports.
        path: the file.
        size: channels, height and width of an image.
    """
    for package in packages:
        importlib.import_module(package)
    image = torch.zeros(1, *size)
    before = _resident()
    network = opener(path, 1)
    network(image)
    return max(0, _resident() - before)


def _resident() -> int:
    """Bytes of this process that are in memory, without what was freed."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


def _main(opener: str, packages: str, path: str, size: str) -> None:
    module, _, name = opener.partition(":")
    found = getattr(importlib.import_module(module), name)
    sys.stdout.write(f"{grown_by(found, packages.split(','), Path(path), tuple(map(int, size.split(','))))}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
