"""The commands of ``docs/ablation.md`` parse, with the options that its text names, and its rows are the variants."""

import re
from pathlib import Path

import pytest

from tests.command_line import parsed

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "ablation.md").read_text()
COMMANDS = re.findall(r"^ +(isvit fit .*)$", PAGE, re.MULTILINE)
OPTIONS = re.findall(r"`(--model[^`]+)`", PAGE)
pytestmark = pytest.mark.usefixtures("own_arguments")


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ISVIT_DATA", "/nowhere/data")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str) -> None:
    assert parsed(command).model.schedule.iterations >= 1


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_recipe(option: str) -> None:
    assert parsed(f"{COMMANDS[0]} {option}").model.recipe != parsed(COMMANDS[0]).model.recipe


def test_the_measured_rows_are_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import ablation

    titles = [variant.title for variant in ablation.VARIANTS]
    tables = re.findall(r"^\| recipe \|.*\n\|---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert len(COMMANDS) == 5
    assert len(OPTIONS) == 4
    assert len(tables) == 2
    assert all([row.split("|")[1].strip() for row in table.splitlines()] == titles for table in tables)
