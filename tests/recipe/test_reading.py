"""Recipes are read from files, and what is no recipe is one sentence."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import Log, Sulq, Uniform
from isvit_lightning.recipe import Recipe, Variant, read_recipe
from isvit_lightning.search import Percentiles
from isvit_lightning.stages import Fold, Inputs, NormalizedError, Ranges, SquaredError, StraightThrough, Tune

METHODS = Path(__file__).parents[2] / "configs" / "methods"
NAMES = sorted(path.stem for path in METHODS.glob("*.yaml"))


def written(folder: Path, content: Any) -> str:
    """Path of a file; each one is read once, so names must differ."""
    path = folder / "own.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_reads_and_is_called_as_it_is(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert read_recipe(str(METHODS / f"{name}.yaml")) == recipe
    assert any(step.quantizes_weights for step in recipe.steps)


def test_files_say_what_the_methods_are() -> None:
    isvit, published = read_recipe("isvit"), read_recipe("isvit_published")
    tuning = StraightThrough(1.2e-2)
    assert isvit.steps == [
        Tune("stage1", weights=False, inputs=Inputs("quantized"), loss=NormalizedError(), trainables=tuning),
        Fold("stage2", "mean", round_zero_point=True),
        Tune("stage3", inputs=Inputs("mixed"), loss=NormalizedError(), trainables=tuning),
    ]
    fixed = StraightThrough(4e-5, relative=False)
    as_published = {"loss": SquaredError(), "trainables": fixed, "range_learning_rate": 0}
    assert published.steps == [
        Tune("stage1", weights=False, inputs=Inputs("float"), **as_published),  # type: ignore[arg-type]
        Fold("stage2", "mean", round_zero_point=False),
        Tune("stage3", inputs=Inputs("quantized"), **as_published),  # type: ignore[arg-type]
    ]
    choosing = [Ranges("ranges"), Ranges("weights", of="weights")]
    assert read_recipe("round_to_nearest").steps == choosing
    assert read_recipe("repq").steps == [choosing[0], Fold("fold"), choosing[1]]
    formats = {name: read_recipe(name).placement.attn_prob.format for name in NAMES}
    assert formats["isvit"] == Sulq()
    assert formats["isvit_published"] == Sulq(extra_codes=1, steps_per_octave=1)
    assert formats["repq"] == Log(steps_per_octave=2)
    assert formats["round_to_nearest"] == Uniform()


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    step = {"class_path": "isvit_lightning.stages.Tune", "init_args": {"name": "all", "iterations": 3}}
    placement = {"attn_prob": {"format": "Log", "bits": 5}, "others": {"neck_in": {"bits": 8}}}
    changes = {"all": {"inputs": {"read": "float"}}}
    own = {"name": "own", "steps": [step], "placement": placement, "changes": changes, "range_images": 2}
    recipe = read_recipe(written(tmp_path, {"model": {"recipe": own}}))
    assert isinstance(recipe, Recipe)
    assert recipe.steps == [Tune("all", iterations=3, inputs=Inputs("float"))]
    assert (recipe.name, recipe.range_images) == ("own", 2)
    assert (recipe.placement.attn_prob.format, recipe.placement.attn_prob.bits) == (Log(), 5)
    assert recipe.placement.attn_prob.search == Percentiles()
    assert recipe.placement.others == {"neck_in": Variant(bits=8)}


def test_an_unknown_name_lists_the_known_ones() -> None:
    for name in ("isvitt", "", "configs/methods/isvit", "absent.yaml"):
        with pytest.raises(IsvitError, match=f"no recipe {name}, expected one of .*isvit.*, or the path"):
            read_recipe(name)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "model: {}",
        "model: {recipe: null}",
        "recipe: {name: own}",
        "a word",
        "[1, 2]",
        "model: [",
        "model: {recipe: {steps: 3}}",
        "model: {recipe: {steps: [{class_path: isvit_lightning.stages.Nothing}]}}",
        "model: {recipe: {steps: [{class_path: os.system, init_args: {command: 'true'}}]}}",
        "model: {recipe: {placement: {attn_prob: {format: Log3}}}}",
        "model: {recipe: {placement: {attn_prob: {granularity: row}}}}",
        "model: {recipe: {stranger: 1}}",
        "model: {bits: {weight: 3}}",
        "model: {recipe: 3}",
        "\x00",
    ],
)
def test_what_is_no_recipe_is_a_sentence(content: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(IsvitError, match=", expected ") as caught:
        read_recipe(path)
    # What reads, but holds no recipe, is an empty one, which says itself what it lacks.
    assert path in str(caught.value) or "No step of the recipe quantizes weights" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_sentence_of_the_recipe_itself_is_kept(tmp_path: Path) -> None:
    ranges = "{class_path: isvit_lightning.stages.Ranges}"
    path = written(tmp_path, f"model: {{recipe: {{steps: [{ranges}]}}}}")
    with pytest.raises(IsvitError, match="No step of the recipe quantizes weights, expected one") as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
