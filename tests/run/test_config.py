"""What a run of an earlier version does not say has its default; everything else must be the same."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from detection.cli import DetectionCLI  # needs no mmdet until it is run
from isvit_lightning.cli import IsvitCLI
from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import recipe_file
from isvit_lightning.run.config import require_same_model, run_directory
from tests.command_line import DETECTION, QUICKSTART

PROGRAMS: dict[str, tuple[type[IsvitCLI], str]] = {
    "classifier": (IsvitCLI, QUICKSTART),
    "detector": (DetectionCLI, DETECTION),
}


@pytest.fixture(scope="module", params=PROGRAMS)
def content(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a run writes."""
    program, config = PROGRAMS[request.param]
    written: dict[str, Any] = yaml.safe_load(program(["--config", config], run=False)._dump())
    return written


def test_what_a_run_writes_agrees_with_itself(content: dict[str, Any], tmp_path: Path) -> None:
    given = yaml.safe_dump(content)
    require_same_model(tmp_path, given)  # no configuration, nothing to compare
    (tmp_path / "config.yaml").write_text(given)
    require_same_model(tmp_path, given)


def test_missing_keys_have_their_defaults(content: dict[str, Any], tmp_path: Path) -> None:
    stored = copy.deepcopy(content)
    model = stored["model"]
    del model["network"]["pretrained"], model["recipe"]["transforms"], model["bits"]["activation"]
    del model["recipe"]["placement"]["value"], model["recipe"]["placement"]["proj_in"]["bits"]
    del model["recipe"]["steps"][2]["init_args"]["recalibrate"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    require_same_model(tmp_path, yaml.safe_dump(content))
    for key in ("network", "bits", "recipe"):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {key: stored["model"][key]}}))
        require_same_model(tmp_path, yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda model: model["recipe"]["steps"][2]["init_args"]["inputs"].update(read="float"), "model.recipe"),
        (lambda model: model["recipe"]["steps"].pop(1), "model.recipe"),
        (lambda model: model["recipe"]["steps"].append(model["recipe"]["steps"].pop(1)), "model.recipe"),
        (lambda model: model["recipe"]["placement"]["attn_prob"].update(bits=8), "model.recipe"),
        (lambda model: model["recipe"].update(changes={"stage1": {"recalibrate": "unit"}}), "model.recipe"),
        (lambda model: model["recipe"]["placement"]["others"].update(neck_in={"bits": 8}), "model.recipe"),
        (lambda model: model["bits"].update(weight=8), "model.bits"),
        (lambda model: model["network"].update(pretrained=False), "model.network"),
    ],
    ids=["inputs", "fewer_steps", "order", "placement", "changes", "others", "bits", "network"],
)
def test_another_choice_is_refused(
    change: Callable[[dict[str, Any]], Any], told: str, content: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    changed = copy.deepcopy(content)
    change(changed["model"])
    with pytest.raises(IsvitError, match=rf"another {told}, expected the same: leave it out"):
        require_same_model(tmp_path, yaml.safe_dump(changed))


def test_several_choices_are_named_together(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    changed = copy.deepcopy(content)
    changed["model"]["bits"]["weight"] = 8
    changed["model"]["recipe"] = yaml.safe_load(recipe_file("repq").read_text())["model"]["recipe"]
    with pytest.raises(IsvitError, match=r"another model\.bits and model\.recipe, expected the same: leave them out"):
        require_same_model(tmp_path, yaml.safe_dump(changed))


def test_a_schedule_may_change(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    changed = copy.deepcopy(content)
    changed["model"]["iterations"] += 1
    require_same_model(tmp_path, yaml.safe_dump(changed))


def test_a_run_is_named_by_its_folder_or_its_file(tmp_path: Path) -> None:
    (tmp_path / "quantized.safetensors").write_bytes(b"")
    assert run_directory(str(tmp_path)) == tmp_path
    assert run_directory(str(tmp_path / "quantized.safetensors")) == tmp_path


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone.safetensors").write_bytes(b"")
    for given in (
        tmp_path / "absent",
        tmp_path / "empty",
        tmp_path / "empty" / "quantized.safetensors",
        tmp_path / "alone.safetensors",
    ):
        with pytest.raises(IsvitError, match=r"holds no finished run; expected .*--ckpt_path"):
            run_directory(str(given))
