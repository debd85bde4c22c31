"""Recipes that ship and that no other test runs: whole, on the quickstart."""

import json
from pathlib import Path

import pytest

from isvit_lightning.program import main
from tests.command_line import CONFIGS, QUICKSTART, SMALL


@pytest.mark.parametrize("name", ["aphq", "fimaq", "lsvit", "glfq"])
def test_a_recipe_runs_on_the_quickstart(name: str, tmp_path: Path, own_arguments: None) -> None:
    method, folder = str(CONFIGS / "methods" / f"{name}.yaml"), ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "--config", method, "--config", QUICKSTART, *SMALL, "--baselines", "[]", *folder]) == 0
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert metrics["quantized"]["top1"] > 50
