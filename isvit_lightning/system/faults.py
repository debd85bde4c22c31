"""What a machine runs out of, told in one sentence: memory and disk."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch.utilities.memory import is_oom_error

from isvit_lightning.errors import IsvitError, first_line

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that an accelerator, or the machine itself, has no memory left for a tensor."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or is_oom_error(error)


def is_compiler_error(error: BaseException) -> bool:
    """Whether ``error`` comes from compiling, not from running."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


@contextmanager
def sentences(directory: Path) -> Iterator[None]:
    """Tell a full disk, a full memory and a unit that cannot be compiled in one sentence each.

    Files of the program itself are written atomically and report by themselves; this is for what libraries write, such
    as logs, and for memory outside of a step, whose micro-batch the stages halve by themselves.

    Args:
        directory: where the run writes.

    Raises:
        IsvitError: disk or memory was full inside, or compiling failed; everything else passes through as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
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
        raise IsvitError(
            f"Memory ran out ({first_line(error)}), expected enough for data.batch_size images at once in an "
            "evaluation and for model.recipe.range_images in the choice of ranges: lower them, or set "
            "trainer.accelerator to cpu."
        ) from error
