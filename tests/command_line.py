"""What tests of the command line share."""

import shlex
from pathlib import Path

import pytest

from isvit_lightning.cli import IsvitCLI
from isvit_lightning.program import chosen_program, main

CONFIGS = Path(__file__).parents[1] / "configs"
QUICKSTART = str(CONFIGS / "quickstart.yaml")
DETECTION = str(CONFIGS / "quickstart_detection.yaml")
SMALL = ["--model.iterations", "1", "--data.calibration_images", "16", "--data.evaluation_images", "20"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which ``main`` refuses ``arguments``."""
    capsys.readouterr()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("isvit: ")
    assert "Traceback" not in printed.out + printed.err
    return lines[0]


def parsed(command: str) -> IsvitCLI:
    """The program of a command line of ``isvit fit`` as text, with everything configured and nothing done."""
    verb, *arguments = shlex.split(command.removeprefix("isvit "))
    assert verb == "fit"
    for option in ("--resume", "--overwrite", "--baselines", "--evaluate"):  # those of the verb itself
        if option in arguments:
            place = arguments.index(option)
            del arguments[place : place + 2]
    return chosen_program(arguments)(arguments, run=False)
