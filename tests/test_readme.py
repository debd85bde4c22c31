"""The README's commands and code run as they stand there."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

import isvit_lightning
from isvit_lightning.embedded.networks import embedded_network
from isvit_lightning.program import main
from isvit_lightning.recipe import recipe_names
from isvit_lightning.run.verbs import VERBS
from tests.command_line import parsed
from tests.docs.commands import ROOT, Idle, blocks, commands, options

README = (ROOT / "README.md").read_text()
COMMANDS = commands(README)


def test_the_readme_has_a_main_and_a_test_command() -> None:
    assert "<!-- main -->" in README
    assert "<!-- tests -->" in README
    assert any("configs/quickstart.yaml" in command for command in COMMANDS)


def test_every_command_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Idle(monkeypatch, tmp_path)
    for command in COMMANDS:
        assert idle.give(command).model.schedule.iterations >= 1
    assert {command.split()[1] for command in COMMANDS} == set(VERBS)


@pytest.mark.usefixtures("own_arguments")
def test_every_option_of_the_text_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spelled = options(README)
    assert {option.split()[0] for option in spelled} == {"--overwrite", "--resume", "--trainer.devices"}
    assert parsed(" ".join(["isvit fit --config configs/quickstart.yaml", *spelled])).trainer.world_size == 2


def test_the_recipes_are_all_that_there_are() -> None:
    (row,) = re.findall(r"^\| `configs/methods/` \| recipes: (.*) \|$", README, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", row)) == recipe_names()


def test_the_main_command_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    short = ["--model.iterations", "1", "--data.calibration_images", "16", "--data.evaluation_images", "20"]
    command = next(line for line in COMMANDS if line.endswith("configs/quickstart.yaml"))
    assert main([*shlex.split(command)[1:], *short, "--trainer.default_root_dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(row in printed for row in ("float", "round to nearest", "repq", "stage1", "isvit"))
    assert all(column in printed for column in ("top-1 %", "top-5 %", "agreement %", "KL", "size", "seconds"))
    assert main(["test", "--ckpt_path", str(tmp_path)]) == 0


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network, images = embedded_network("vit_digits"), torch.randn(8, 3, 32, 32)
    example = blocks(README, "python")[0].replace("bits=4)", "bits=4, iterations=1, batch_size=4)")
    names = {"network": network, "images": images, "isvit_lightning": isvit_lightning}
    exec(compile(example, "README.md", "exec"), names)
    assert isinstance(names["network"], isvit_lightning.QuantizedNetwork)


def test_files_that_the_readme_names_exist() -> None:
    named = re.findall(r"\b((?:configs|docs|benchmarks)/[\w/]+\.(?:yaml|md|py))\b", README)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_tables_of_results_are_those_of_the_reference_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import reference

    entries = yaml.safe_load((ROOT / "docs" / "reference.yaml").read_text())
    for metric, page in reference.PAGES.items():
        assert reference.between(page, "results").strip() == reference.table(reference.published(entries, metric))
    assert reference.between(reference.COSTS, "cost").strip() == reference.cost_table(entries)
