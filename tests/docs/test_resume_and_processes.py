"""The commands of ``docs/resume_and_processes.md`` parse, and its log is that of twenty kills."""

import re
from pathlib import Path

import pytest

from tests.command_line import parsed

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "resume_and_processes.md").read_text()
COMMANDS = re.findall(r"^(isvit fit .*)$", PAGE, re.MULTILINE)
OPTIONS = re.findall(r"`(--model\.recipe[^`]+)`", PAGE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["isvit"])
    assert all(parsed(" ".join([command, *OPTIONS[:count]])).model.schedule.iterations >= 1 for count in (0, 1))


def test_there_are_commands_and_a_whole_log() -> None:
    assert len(COMMANDS) == 3
    assert len(OPTIONS) == 1
    assert "20 kills" in PAGE
    assert ", 0 different" in PAGE
    assert len(re.findall(r"^kill +\d+ after", PAGE, re.MULTILINE)) == 20
