"""The commands and options of ``docs/deployment.md`` are accepted."""

import re
from pathlib import Path

import pytest

from isvit_lightning.run.benchmark import onnx_runtime, openvino, pytorch
from tests.docs.commands import ROOT, Idle, commands, options

PAGE = (ROOT / "docs" / "deployment.md").read_text()


@pytest.mark.usefixtures("own_arguments")
def test_every_command_and_option_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Idle(monkeypatch, tmp_path)
    idle.give("isvit fit --config configs/quickstart.yaml")
    given = [command for command in commands(PAGE) if command.split()[1] in ("fit", "benchmark")]
    assert {command.split()[1] for command in given} == {"fit", "benchmark"}
    own = {"--engines", "--accuracy", "--profile"}
    spelled = [option for option in options(PAGE) if option.split()[0] in own and " " in option]
    assert {option.split()[0] for option in spelled} == own
    for command in given:
        more = spelled if command.split()[1] == "benchmark" else []
        assert idle.give(" ".join([command, *more])).model.schedule.iterations >= 1


def test_the_page_knows_the_engines() -> None:
    rows = re.findall(r"^\| (.*?) \| .* \|$", PAGE, re.MULTILINE)
    for engine in (pytorch.ENGINE, onnx_runtime.ENGINE, openvino.ENGINE):
        assert any(engine in row for row in rows)
