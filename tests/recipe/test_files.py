"""Recipes lie in one folder, and are found by name or by path."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import DEFAULT, names_recipe, read_recipe, recipe_file, recipe_names
from isvit_lightning.recipe.files import step_names

METHODS = Path(__file__).parents[2] / "configs" / "methods"
NAMES = sorted(path.stem for path in METHODS.glob("*.yaml"))


def test_every_file_is_found() -> None:
    assert recipe_names() == NAMES
    assert {"isvit", "isvit_published", "repq", "round_to_nearest"} <= set(NAMES)
    assert DEFAULT in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_file_has_its_name_and_holds_a_whole_recipe(name: str) -> None:
    assert recipe_file(name).samefile(METHODS / f"{name}.yaml")
    assert recipe_file(str(METHODS / f"{name}.yaml")) == METHODS / f"{name}.yaml"
    assert names_recipe(yaml.safe_load((METHODS / f"{name}.yaml").read_text()))


def test_a_path_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ending in ("yaml", "yml"):
        (tmp_path / f"own.{ending}").touch()
        assert recipe_file(str(tmp_path / f"own.{ending}")) == tmp_path / f"own.{ending}"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert recipe_file("~/own.yaml") == tmp_path / "own.yaml"


def test_an_unknown_name_lists_the_known_ones() -> None:
    for name in ("isvitt", "", "configs/methods/isvit", "absent.yaml"):
        with pytest.raises(IsvitError, match=f"no recipe {name}, expected one of .*isvit.*, or the path"):
            recipe_file(name)


def test_the_steps_of_all_recipes_are_known() -> None:
    assert step_names() == {step.name for name in NAMES for step in read_recipe(name).steps}


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        ({"model": {"recipe": {"name": "own", "steps": []}}}, True),
        ({"model": {"recipe": {"name": "own"}}}, False),
        ({"model": {"recipe": {"steps": []}}}, False),
        ({"model": {"recipe": None}}, False),
        ({"model": {}}, False),
        ({"model": 3}, False),
        ({}, False),
        ([], False),
        (None, False),
    ],
)
def test_a_whole_recipe_has_a_name_and_steps(content: Any, whole: bool) -> None:
    assert names_recipe(content) is whole
