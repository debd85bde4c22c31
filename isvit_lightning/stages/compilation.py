"""What a step calls to run a unit: the unit itself, or a compiled function around it."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import Data, Unit


def callable_of(unit: Unit, compiles: bool, backend: str | Callable[..., Any] = "inductor") -> Callable[[Data], Data]:
    """A function that runs ``unit``, which itself stays as it is.

    Args:
        unit: the unit.
        compiles: compile the function with torch.compile, when it is first called.
        backend: of torch.compile.
    """

    def run(inputs: Data) -> Data:
        return unit(inputs)

    if not compiles:
        return run
    # Each unit has zero points of its own, which are constants of its compiled form; after eight forms of one function
    # torch would give up on it. Those of earlier units are not needed any more.
    torch.compiler.reset()
    compiled: Callable[[Data], Data] = torch.compile(run, backend=backend)
    return compiled


def require_compiler(device: str) -> None:
    """Refuse to begin a run whose units cannot be compiled.

    Args:
        device: type of the device that computes.

    Raises:
        IsvitError: torch finds no C++ compiler for a CPU, or no Triton for an accelerator.
    """
    missing = missing_compiler(device)
    if missing:
        raise IsvitError(
            f"Units cannot be compiled: {missing}, expected one for model.compile: install it, name a C++ compiler "
            "with the environment variable CXX, or set model.compile to false."
        )


def missing_compiler(device: str) -> str:
    """What torch lacks to compile for a device; nothing where it has all.

    Args:
        device: type of the device that computes.
    """
    if device == "cpu":
        # Where torch looks, too.
        command = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        return "" if shutil.which(shlex.split(command)[0]) else f"there is no C++ compiler {command}"
    return "" if find_spec("triton") else "the package triton is not installed"
