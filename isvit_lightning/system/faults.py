"""What a machine runs out of, and what the program itself did wrong, told in one sentence."""

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch.utilities.memory import is_oom_error

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.system.processes import is_first_process, lost_connection

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class DefectError(IsvitError):
    """A fault of the program itself."""

    status = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that an accelerator, or the machine itself, has no memory left for a tensor."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or is_oom_error(error)


def is_compiler_error(error: BaseException) -> bool:
    """Whether ``error`` comes from compiling, not from running."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


@contextmanager
def sentences(directory: Path) -> Iterator[None]:
    """Tell in one sentence what ends a run.

    A full disk or memory, a file that cannot be used, a unit that cannot be compiled, a missing package, and
    a fault of the program itself, whose traceback goes to a file.

    Files of the program itself are written atomically and report by themselves; this is for what libraries write, such
    as logs, and for memory outside of a step, whose micro-batch the stages halve by themselves.

    Args:
        directory: where the run writes.

    Raises:
        IsvitError: any of these happened inside; a lost connection to another process passes through as it is.
    """
    try:
        with _told_by_cause(directory):
            yield
    except IsvitError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and lost_connection(error):
            raise
        raise defect(error, directory) from error


def defect(error: Exception, directory: Path) -> DefectError:
    """Write the traceback of ``error`` to a file.

    Args:
        error: what nobody expected.
        directory: where the file is written.

    Returns:
        The sentence that names the file, or holds the traceback where it cannot be written.
    """
    path = directory / ("traceback.txt" if is_first_process() else f"traceback_{os.getpid()}.txt")
    lines = "".join(traceback.format_exception(error))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines, encoding="utf-8")
        where = f"{path} holds the traceback"
    except OSError as unwritable:
        where = f"{path} cannot be written ({unwritable.strerror}), so here is the traceback:\n{lines}"
    return DefectError(
        f"The program failed ({type(error).__name__}: {first_line(error)}), expected to go on to its end: the fault is "
        f"its own, what is finished is kept; please report it, {where}."
    )


@contextmanager
def _told_by_cause(directory: Path) -> Iterator[None]:
    """Sentences of what has a known cause; everything else passes through as it is."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise IsvitError(
            f"A package is missing ({first_line(error)}), expected it to be installed: install it, or leave out the "
            "logger, callback or strategy of the trainer that needs it."
        ) from error
    except OSError as error:
        if error.errno not in _DISK_FULL and error.filename is None:
            raise
        if error.errno not in _DISK_FULL:
            raise IsvitError(
                f"{error.filename} cannot be used ({error.strerror}), expected files and folders that can be read and "
                "written: change the option that names it, or set trainer.default_root_dir elsewhere."
            ) from error
        raise IsvitError(
            f"The disk of {error.filename or directory} is full ({error.strerror}), expected room for the files of the "
            "run: free some or set trainer.default_root_dir elsewhere; files written before are whole."
        ) from error
    except (RuntimeError, MemoryError) as error:
        if is_compiler_error(error):
            raise IsvitError(
                f"A unit cannot be compiled ({first_line(error)}), expected a C++ compiler that finds the headers of "
                "Python, or Triton on an accelerator: install what is missing or set model.compile to false."
            ) from error
        if not is_out_of_memory(error):
            raise
        of_cpu = isinstance(error, MemoryError) or "CPUAllocator" in str(error)
        raise IsvitError(
            f"Memory ran out ({first_line(error)}), expected enough for data.batch_size images at once in an "
            "evaluation and for model.recipe.range_images in the choice of ranges: lower them, or "
            f"{'end what else uses memory' if of_cpu else 'set trainer.accelerator to cpu'}."
        ) from error
