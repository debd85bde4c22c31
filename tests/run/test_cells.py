"""Cells of a comparison: which there are, and when a file of one counts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import Bits, read_recipe, recipe_names, record_of
from isvit_lightning.run.cells import Cell, Cells, grid
from tests.command_line import CONFIGS

CONDITIONS = {"network": {"name": "net"}, "images": (1, 2), "schedule": {"iterations": 5}}
ROW = {"top1": 87.5, "kl": 0.25, "seconds": 1.5, "beyond": []}
CELL = Cell("isvit", read_recipe("isvit"), Bits(3, 4), 2)
RECORD = record_of(CELL.recipe)


@pytest.fixture
def cells(tmp_path: Path) -> Cells:
    return Cells(tmp_path / "run", CONDITIONS)


def refused(text: str, **options: Any) -> None:
    with pytest.raises(IsvitError, match=text):
        grid(**{"methods": "repq", "bits": "w4a4", "seeds": "0", "given": Bits(), **options})


def test_cells_come_by_width_then_recipe_then_seed() -> None:
    cells = grid("repq, isvit", "w3a3,W4A8", "0, 7", Bits())
    expected = [
        (method, bits, seed) for bits in (Bits(3, 3), Bits(4, 8)) for method in ("repq", "isvit") for seed in (0, 7)
    ]
    assert [(cell.method, cell.bits, cell.seed) for cell in cells] == expected
    assert all(cell.recipe == read_recipe(cell.method) for cell in cells)


def test_all_methods_at_the_widths_of_the_configuration() -> None:
    cells = grid("all", None, "0", Bits(2, 5))
    assert [cell.method for cell in cells] == recipe_names()
    assert {cell.bits for cell in cells} == {Bits(2, 5)}
    assert len({cell.key for cell in cells}) == len(cells) > 5


def test_titles_and_names_of_files() -> None:
    assert (CELL.title, CELL.key) == ("isvit w3a4", "isvit-w3a4-seed2")
    own = Cell("some/where/my own.yaml", CELL.recipe, Bits(8, 2), 0)
    assert (own.title, own.key) == ("my own w8a2", "my-own-w8a2-seed0")


@pytest.mark.parametrize("methods", ["", " , ", "repq,repq"])
def test_methods_that_are_none(methods: str) -> None:
    refused(
        r"^--methods is .*, expected one or more, each once, with commas between them: correct it\.$", methods=methods
    )


def test_an_unknown_method() -> None:
    refused("^There is no recipe nothing, expected one of .*repq", methods="repq,nothing")


@pytest.mark.parametrize(
    "bits", ["4", "w4", "w4a", "a4w4", "w4a4a4", "w1a4", "w4a9", "w4a44", "w-4a4", "w4 a4", "w²a4"]
)
def test_widths_that_are_none(bits: str) -> None:
    refused(r"^--bits holds '.*', expected widths from 2 to 8 such as w4a4: correct it\.$", bits=f"w3a3,{bits}")


@pytest.mark.parametrize("seed", ["-1", "1.5", "one", "²", "4294967296", "9" * 5000, "0 1"])
def test_seeds_that_are_none(seed: str) -> None:
    refused(
        r"^--seeds holds '.*', expected whole numbers below 4294967296 such as 0,1,2: correct it\.$", seeds=f"0,{seed}"
    )


def test_the_largest_seed() -> None:
    assert grid("repq", None, "4294967295", Bits())[0].seed == 2**32 - 1


@pytest.mark.parametrize(
    ("options", "key"),
    [({"bits": "w4a4,W4A4"}, "repq-w4a4-seed0"), ({"seeds": "1,01"}, "repq-w4a4-seed1")],
    ids=["bits", "seeds"],
)
def test_the_same_in_other_words(options: dict[str, str], key: str) -> None:
    refused(rf"^The cell {key} is asked for twice, expected .*: correct --methods, --bits or --seeds\.$", **options)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    path = shutil.copy(CONFIGS / "methods" / "isvit.yaml", tmp_path / "repq.yaml")
    refused(
        "^The cell repq-w4a4-seed0 is asked for twice, expected recipe files of different names", methods=f"repq,{path}"
    )


def test_what_was_written_is_read(cells: Cells) -> None:
    assert cells.read(CELL, RECORD) is None
    cells.write(CELL, RECORD, ROW)
    assert cells.path(CELL) == cells.directory / "cells" / "isvit-w3a4-seed2.json"
    assert cells.read(CELL, RECORD) == ROW
    # Conditions of another process are equal, though JSON knows no tuples.
    assert Cells(cells.directory, {**CONDITIONS, "images": [1, 2]}).read(CELL, RECORD) == ROW
    assert cells.read(Cell("isvit", CELL.recipe, Bits(3, 4), 3), RECORD) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b'{"conditions": {',
        b"[]",
        b"3",
        b"{}",
        b'{"conditions": {}}',
        b'{"row": {}}',
        b'{"conditions": {}, "row": 3}',
        b'{"conditions": {}, "row": ["x"]}',
        b'{"conditions": 3, "row": {}}',
    ],
)
def test_a_damaged_file_is_none(cells: Cells, content: bytes) -> None:
    cells.path(CELL).parent.mkdir(parents=True)
    cells.path(CELL).write_bytes(content)
    assert cells.read(CELL, RECORD) is None
    cells.write(CELL, RECORD, ROW)
    assert cells.read(CELL, RECORD) == ROW


@pytest.mark.parametrize(
    ("conditions", "difference"),
    [
        ({**CONDITIONS, "schedule": {"iterations": 6}}, r"schedule\.iterations: 5 → 6"),
        ({**CONDITIONS, "images": (1, 3)}, r"images: \[1, 2\] → \[1, 3\]"),
        ({**CONDITIONS, "more": 1}, "more: none → 1"),
    ],
)
def test_other_conditions_are_refused(cells: Cells, conditions: dict[str, Any], difference: str) -> None:
    cells.write(CELL, RECORD, ROW)
    before = cells.path(CELL).read_bytes()
    with pytest.raises(IsvitError) as caught:
        Cells(cells.directory, conditions).read(CELL, RECORD)
    sentence = str(caught.value)
    assert sentence.startswith(f"{cells.path(CELL)} was made under other conditions (")
    assert sentence.endswith(
        "expected the same for all rows: choose another trainer.default_root_dir, or remove the file."
    )
    with pytest.raises(IsvitError, match=difference):
        Cells(cells.directory, conditions).read(CELL, RECORD)
    assert cells.path(CELL).read_bytes() == before


def test_another_recipe_of_the_name_is_refused(cells: Cells) -> None:
    cells.write(CELL, RECORD, ROW)
    with pytest.raises(IsvitError, match=r"recipe\.range_images: 64 → 3"):
        cells.read(CELL, {**RECORD, "range_images": 3})


def test_a_failed_cell_is_done_again_whatever_it_was_made_with(cells: Cells) -> None:
    """Its recipe may be mended meanwhile."""
    cells.write(CELL, RECORD, {"failed": "no reason"})
    assert json.loads(cells.path(CELL).read_text())["row"] == {"failed": "no reason"}
    assert cells.read(CELL, RECORD) is None
    assert cells.read(CELL, {**RECORD, "range_images": 3}) is None
