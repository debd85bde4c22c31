"""The commands of ``docs/resume_and_processes.md`` parse, and its log is that of twenty kills."""

import re
import shlex
from pathlib import Path

import pytest

from isvit_lightning.cli import IsvitCLI

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "resume_and_processes.md").read_text()
COMMANDS = re.findall(r"^isvit (fit .*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["isvit"])
    verb, *arguments = shlex.split(command)
    assert verb == "fit"
    arguments = [argument for argument in arguments if argument not in ("--resume", "true")]
    assert IsvitCLI(arguments, run=False).model.iterations >= 1


def test_there_are_commands_and_a_whole_log() -> None:
    assert len(COMMANDS) == 3
    assert "20 kills" in PAGE
    assert ", 0 different" in PAGE
    assert len(re.findall(r"^kill +\d+ after", PAGE, re.MULTILINE)) == 20
