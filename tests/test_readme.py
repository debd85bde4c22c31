"""The README's commands and code run as they stand there."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

import isvit_lightning
from isvit_lightning.cli import main
from isvit_lightning.embedded.networks import embedded_network
from tests.command_line import parsed

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line.strip() for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line[line.index("isvit ") :] for line in lines if re.search(r"(^|/)isvit ", line)]


def test_the_readme_has_a_main_and_a_test_command() -> None:
    assert "<!-- main -->" in README
    assert "<!-- tests -->" in README
    assert any("configs/quickstart.yaml" in command for command in commands())


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("isvit fit")])
def test_every_fit_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["isvit"])
    assert parsed(command).model.schedule.iterations >= 1


def test_the_main_command_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    short = ["--model.iterations", "1", "--data.calibration_images", "16", "--data.evaluation_images", "20"]
    command = next(line for line in commands() if line.endswith("configs/quickstart.yaml"))
    assert main([*shlex.split(command)[1:], *short, "--trainer.default_root_dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(row in printed for row in ("float", "round to nearest", "repq", "stage1", "isvit"))
    assert main(["test", "--ckpt_path", str(tmp_path)]) == 0


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network, images = embedded_network("vit_digits"), torch.randn(8, 3, 32, 32)
    example = blocks("python")[0].replace("bits=4)", "bits=4, iterations=1, batch_size=4)")
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
