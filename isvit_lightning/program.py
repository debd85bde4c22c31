"""The program ``isvit``: which command line a configuration chooses, and how it ends."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from isvit_lightning.callbacks import progress
from isvit_lightning.cli import IsvitCLI, program_name
from isvit_lightning.errors import IsvitError
from isvit_lightning.run.arguments import content_of, values_of, with_choices_first, with_run_config, with_underscores
from isvit_lightning.run.messages import told
from isvit_lightning.system.bootstrap import begin_process
from isvit_lightning.system.processes import is_first_process
from isvit_lightning.system.termination import TerminatedError, sentence_on_signals

_GRACE_SECONDS = 2.0


def chosen_program(arguments: Sequence[str], default: type[IsvitCLI] = IsvitCLI) -> type[IsvitCLI]:
    """The program that the last ``--program``, or else the last configuration file with a key ``program``, names.

    Args:
        arguments: command line, with the configuration of a run that it names.
        default: the program where nothing names one.

    Raises:
        IsvitError: there is no such program.
    """
    files = [content_of(Path(path)) for path in values_of("--config", arguments)]
    named = [str(file["program"]) for file in files if isinstance(file, dict) and file.get("program")]
    named += values_of("--program", arguments)
    if not named:
        return default
    module, _, name = named[-1].rpartition(".")
    try:
        program = getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise IsvitError(
            f"The program {named[-1]} cannot be imported ({error}), expected one such as {program_name(IsvitCLI)}, or "
            "that of an extra that is installed: change program."
        ) from None
    if not (isinstance(program, type) and issubclass(program, IsvitCLI)):
        raise IsvitError(f"{named[-1]} is no program, expected one such as {program_name(IsvitCLI)}: change program.")
    return program


def main(arguments: Sequence[str] | None = None, program: type[IsvitCLI] = IsvitCLI) -> int:
    """Entry point of ``isvit``.

    Args:
        arguments: command line without the program's name; the process's own by default.
        program: the command line to run where the configuration names none; a subclass adds to what is done.

    Returns:
        Exit status: 0; 1 after a fault of the program itself, 2 after a mistake in the input, 3 when another process of
        the run ended, 130 after Ctrl-C, 143 after SIGTERM or the time limit.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    first = is_first_process()
    begin_process(told_by_all=[progress.__name__])
    # Lightning starts the other processes with the arguments of this one.
    sys.argv = [*sys.argv[:1], *given]
    with contextlib.ExitStack() as stack:
        if not first:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        stack.enter_context(sentence_on_signals())
        return _status(program, given, first)


def _status(program: type[IsvitCLI], given: list[str], first: bool) -> int:
    """Run the program and tell in one sentence why it ended before its end."""
    try:
        given = with_choices_first(with_run_config(with_underscores(given)))
        chosen_program(given, program)(given)
    except TerminatedError as error:
        _tell(error.sentence(given), first)
        return error.status
    except Exception as error:  # noqa: BLE001 - every one is told in a sentence
        sentence, status = told(error)
        _tell(sentence, first)
        return status
    return 0


def _tell(sentence: str, first: bool) -> None:
    """Write ``sentence`` to standard error; a mistake that all processes make comes from the first one alone."""
    if not first:
        time.sleep(_GRACE_SECONDS)  # the first process ends the others when it fails too
    sys.stderr.write(f"isvit: {sentence}\n")
