"""Imports point downwards, and the core never meets the detection packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "isvit_lightning"
# From the top down; a room may import those behind it. Leaves without a room: errors, method, embedded.
ROOMS = ("stages", "callbacks", "data", "networks", "layers", "quantizers", "export")


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_rooms_below(room: str) -> None:
    above = {f"isvit_lightning.{name}" for name in ROOMS[: ROOMS.index(room)]}
    above |= {f"isvit_lightning.{name}" for name in ("cli", "runner", "api", "artifact", "classifier", "results")}
    for path in (PACKAGE / room).rglob("*.py"):
        wrong = [name for name in imported(path) if any(name == up or name.startswith(f"{up}.") for up in above)]
        assert not wrong, f"{path} imports {wrong}"


def test_the_core_does_not_import_detection() -> None:
    packages = ("mmdet", "mmcv", "mmengine", "detection")
    code = f"import sys, isvit_lightning; print([name for name in {packages} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_files_stay_small() -> None:
    long = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: lines for path, lines in long.items() if lines > 400} == {}
