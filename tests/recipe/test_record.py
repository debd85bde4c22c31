"""A record is plain: JSON holds it, and different choices have different records."""

import json
from dataclasses import replace
from typing import Any

import pytest

from isvit_lightning.recipe import Bits, Choice, Recipe, Variant, read_recipe, recipe_names, record_of
from isvit_lightning.search import Percentiles
from isvit_lightning.stages import Fold, NoWeights, Schedule


def test_a_dataclass_tells_its_type_and_its_values() -> None:
    assert record_of(Bits(3, 5)) == {"type": "Bits", "weight": 3, "activation": 5}
    assert record_of(NoWeights()) == {"type": "NoWeights"}
    assert record_of(Percentiles((0.9, 1.0), include_zero=True, per_token=True, interpolate=False)) == {
        "type": "Percentiles",
        "percentiles": [0.9, 1.0],
        "include_zero": True,
        "per_token": True,
        "interpolate": False,
        "free": None,
        "samples": None,
    }


def test_lists_and_mappings_are_entered() -> None:
    given = {"a": (Bits(), [Fold()]), 3: {"b": Bits(2, 2)}, "none": None}
    bits: dict[str, Any] = {"type": "Bits", "weight": 4, "activation": 4}
    fold = {"type": "Fold", "name": "fold", "statistic": "mean", "round_zero_point": True}
    assert record_of(given) == {"a": [bits, [fold]], "3": {"b": {**bits, "weight": 2, "activation": 2}}, "none": None}


@pytest.mark.parametrize("name", recipe_names())
def test_json_gives_a_record_back(name: str) -> None:
    record = record_of({"recipe": read_recipe(name), "bits": Bits(), "schedule": Schedule(), "seed": 3})
    assert json.loads(json.dumps(record)) == record
    assert record["recipe"]["name"] == name
    assert [step["name"] for step in record["recipe"]["steps"]] == [step.name for step in read_recipe(name).steps]


def test_what_is_another_choice_has_another_record() -> None:
    recipe = read_recipe("isvit")
    others = [
        read_recipe("repq"),
        replace(recipe, range_images=32),
        replace(recipe, reconstruct="all"),
        replace(recipe, changes={"stage1": {"inputs": {"read": "float"}}}),
        replace(recipe, changes={"stage2": {"statistic": "median"}}),
        replace(recipe, placement=replace(recipe.placement, head_in=Choice(bits=8))),
        replace(recipe, placement=replace(recipe.placement, others={"box_head_in": Variant(is_float=True)})),
    ]
    records = [json.dumps(record_of(each)) for each in (recipe, *others)]
    assert len(set(records)) == 1 + len(others)


def test_equal_recipes_have_equal_records() -> None:
    recipe = read_recipe("isvit")
    changed = replace(recipe, changes={"stage1": {"range_learning_rate": 1.0e-2}})
    assert changed == recipe
    assert record_of(changed) == record_of(recipe)
    assert record_of(Recipe("isvit", recipe.placement, steps=recipe.steps)) == record_of(recipe)
