"""What the user reads of an error: one sentence."""

import re
from argparse import ArgumentError
from pathlib import Path

from isvit_lightning.errors import IsvitError
from isvit_lightning.system.faults import defect
from isvit_lightning.system.processes import lost_connection, world_size

_UNMEANT = ("Expected a <class", "Expected a path", "Not a valid subclass", "a class path", "a dict")
"""Beginnings of what a parser says of kinds of values that a text could have been, too."""


def told(error: Exception) -> tuple[str, int]:
    """The sentence for ``error``, with which a run ended, and the exit status of the program."""
    # The parser wraps what a constructor raises; any other ValueError is no mistake of the user.
    if isinstance(error, ArgumentError) or (isinstance(error, ValueError) and own_sentences(error)):
        return one_sentence(error), 2
    if isinstance(error, RuntimeError) and lost_connection(error):
        return (
            f"Another process of this run ended, expected all {world_size()} to go on: every finished unit is kept; go "
            "on with the same command and --resume true."
        ), 3
    known = error if isinstance(error, IsvitError) else defect(error, Path("runs"))
    return str(known), known.status


def own_sentences(error: Exception) -> list[str]:
    """The sentences of this program inside a parser's complaint."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return [line for line in lines if ", expected" in line and line.endswith(".")]


def one_sentence(error: Exception) -> str:
    """A parser's complaint in one line; where one of this program's own sentences is inside, that alone."""
    own = own_sentences(error)
    return own[0] if own else f"{reason(error)}; `isvit fit --help` lists the expected keys."


def reason(error: Exception) -> str:
    """A parser's complaint in one line, without the kinds of values that nobody meant."""
    head, found, rest = str(error).partition("Does not validate against any of the Union subtypes")
    if not found:
        return " ".join(head.split())
    said = rest.partition("Errors:")[2].partition("Given value")[0]
    tried = [" ".join(each.split()) for each in re.split(r"\n\s*- ", said)]
    meant = [each for each in tried if each and not each.startswith(_UNMEANT)]
    key = head.partition(":")[0].strip() if ":" in head else ""
    return ": ".join(part for part in (key, meant[0] if meant else "; ".join(filter(None, tried))) if part).rstrip(".")
