"""Imports point downwards, and the core never meets the detection packages."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "isvit_lightning"
ROOMS = (
    "__main__",
    "program",
    "cli",
    "classifier",
    "evaluation",
    "__init__",
    "api",
    "run",
    "recipe",
    "callbacks",
    "stages",
    "export",
    "transforms",
    "data",
    "networks",
    "sources",
    "layers",
    "search",
    "quantizers",
    "embedded",
    "storage",
    "system",
    "errors",
)
"""Every room, folder or module, from the top down; a room may import those behind it."""
LINES = 300


def files_of(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def imported(path: Path) -> set[str]:
    """Rooms that a file imports anything of; ``__init__`` where it imports what that gives to others."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        own = [name.split(".")[1:] for name in names if name.split(".")[0] == PACKAGE.name]
        found |= {inner[0] if inner and inner[0] in ROOMS else "__init__" for inner in own}
    return found


def test_every_room_has_its_place() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or [*path.glob("*.py")]}
    assert rooms == set(ROOMS)
    assert len(ROOMS) == len(rooms)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_rooms_below(room: str) -> None:
    allowed = set(ROOMS[ROOMS.index(room) :])
    wrong = {str(path.relative_to(ROOT)): sorted(imported(path) - allowed) for path in files_of(room)}
    assert {path: rooms for path, rooms in wrong.items() if rooms} == {}


def test_a_name_that_the_package_gives_counts_as_an_import_of_it(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text("from isvit_lightning import load, errors\nimport isvit_lightning.system.heap\nimport torch\n")
    assert imported(path) == {"__init__", "errors", "system"}


def test_the_core_does_not_import_detection() -> None:
    packages = ("mmdet", "mmcv", "mmengine", "detection")
    code = f"import sys, isvit_lightning.cli; print([name for name in {packages} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_the_core_does_not_mention_detection_packages() -> None:
    pattern = re.compile(r"\b(mmdet|mmcv|import detection|from detection)\b", re.IGNORECASE)
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    assert lines == []


@pytest.mark.parametrize("package", ["isvit_lightning", "detection", "tools", "benchmarks"])
def test_files_stay_small(package: str) -> None:
    long = {path.name: len(path.read_text().splitlines()) for path in (ROOT / package).rglob("*.py")}
    assert long
    assert {name: lines for name, lines in long.items() if lines > LINES} == {}
