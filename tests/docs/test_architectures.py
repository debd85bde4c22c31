"""The worked example of ``docs/architectures.md`` runs as it stands there."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from isvit_lightning.networks import Heads, Stream, adapter_for
from isvit_lightning.networks.adapter import HasHeads, HasStream
from tests.helpers import tiny_swin, tiny_vit

PAGE = Path(__file__).parent.parent.parent / "docs" / "architectures.md"


def test_the_worked_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    names: dict[str, object] = {"__name__": "architectures"}
    exec(compile(code, str(PAGE), "exec"), names)
    images = torch.randn(2, 3, 16, 16)
    quantized, again = names["quantized"], names["again"]
    assert torch.equal(quantized(images), again(images))  # type: ignore[operator]


def test_the_pieces_of_heads_and_streams_are_told() -> None:
    for kind in (Heads, Stream):
        table = PAGE.read_text().partition(f"| `{kind.__name__}` | is |\n")[2].partition("\n\n")[0]
        told = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}
        assert told == {entry.name for entry in fields(kind)} - {"name"}


def test_files_that_the_page_names_exist() -> None:
    named = re.findall(r"`(isvit_lightning/[\w/]+\.py)`", PAGE.read_text())
    assert named
    assert [path for path in named if not (PAGE.parent.parent / path).exists()] == []


def test_the_optional_methods_are_those_of_the_networks_that_ship() -> None:
    vit, swin = adapter_for(tiny_vit()), adapter_for(tiny_swin())
    assert (isinstance(vit, HasHeads), isinstance(vit, HasStream)) == (True, True)
    assert (isinstance(swin, HasHeads), isinstance(swin, HasStream)) == (True, False)
