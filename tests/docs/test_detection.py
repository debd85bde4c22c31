"""The commands and options of ``docs/detection.md`` are accepted."""

from pathlib import Path

import pytest

from tests.command_line import parsed
from tests.docs.commands import ROOT, Idle, commands, options

pytest.importorskip("mmdet")
PAGE = (ROOT / "docs" / "detection.md").read_text()


def test_every_command_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Idle(monkeypatch, tmp_path)
    for command in commands(PAGE):
        assert idle.give(command.partition(" #")[0]).model.schedule.iterations >= 1
    assert len(commands(PAGE)) == 6


@pytest.mark.usefixtures("own_arguments")
def test_every_option_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (spelled,) = options(PAGE)
    others = parsed(f"isvit fit --config configs/quickstart_detection.yaml {spelled}").model.recipe.placement.others
    assert {name: variant.bits for name, variant in others.items()} == {"box_head_in": 8, "box_head_weight": 8}
