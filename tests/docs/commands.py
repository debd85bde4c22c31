"""The commands and options that a page spells, parsed as the program does, with nothing done."""

import re
import shlex
from pathlib import Path

import pytest

from isvit_lightning.cli import IsvitCLI
from isvit_lightning.program import main
from isvit_lightning.run.verbs import VERBS

ROOT = Path(__file__).parent.parent.parent


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """Every command of the program in the code blocks of a page, from its name on."""
    lines = [line.strip() for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line[line.index("isvit ") :] for line in lines if re.search(r"(^|/)isvit ", line)]


def options(page: str) -> list[str]:
    """Every option that the text of a page spells, with its value where it has one."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`(--[a-z][^`]*)`", text)


class Idle:
    """Lets commands be given in a folder of their own: all is parsed and configured, and nothing is done.

    Args:
        monkeypatch: puts everything back.
        folder: where commands are given; it shows the configurations of the repository.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.program: IsvitCLI | None = None
        monkeypatch.setattr("sys.argv", ["isvit"])
        for place in ("IMAGENET", "COCO", "ISVIT_DATA"):
            monkeypatch.setenv(place, "/nowhere/data")
        if not (folder / "configs").exists():
            (folder / "configs").symlink_to(ROOT / "configs")
        monkeypatch.chdir(folder)
        for verb in VERBS:
            monkeypatch.setattr(IsvitCLI, verb, lambda program, **_: self._note(program))

    def give(self, command: str) -> IsvitCLI:
        """Give a command, which has to be accepted, and return the configured program."""
        self.program = None
        assert main(shlex.split(command)[1:]) == 0, command
        assert self.program is not None
        return self.program

    def _note(self, program: IsvitCLI) -> None:
        self.program = program
        if program.subcommand == "fit":
            # Later commands find a finished run there, as far as they look.
            directory = program._directory()
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "config.yaml").write_text(program._dump())
            (directory / "quantized.safetensors").touch()
