"""Every variant of the ablation changes what its title says, and is measured by a run."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from isvit_lightning.recipe import read_recipe
from tests.command_line import QUICKSTART, SMALL

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch, own_arguments: None) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import ablation

    return ablation


def test_every_variant_is_another_recipe(ablation: ModuleType) -> None:
    default = read_recipe("isvit")
    recipes = [variant.change(default) for variant in ablation.VARIANTS]
    assert recipes[0] == default
    assert recipes[-1] == read_recipe("isvit_published")
    for index, recipe in enumerate(recipes):
        assert recipe not in recipes[:index], ablation.VARIANTS[index].title


def spelled_out(choice: Any) -> Any:
    """The search of a choice with what is usual for its format where it says nothing."""
    usual = {name: value for name, value in choice.format.usual_search.items() if getattr(choice.search, name) is None}
    return replace(choice.search, **usual)


def test_published_choices_together_are_the_published_recipe_but_for_its_grids(ablation: ModuleType) -> None:
    """Codes and zero points of the published code have no variant of their own."""
    recipe, published = read_recipe("isvit"), read_recipe("isvit_published")
    for variant in ablation.VARIANTS[:-1]:
        if "published" in variant.title or variant.title == "scales of activations fixed":
            recipe = variant.change(recipe)
    tunings = [step for step in recipe.steps if step.tunes]
    assert tunings == [step for step in published.steps if step.tunes]
    for role in ("proj_in", "gelu_out", "reduction_in", "head_in", "linear_in"):
        own, wanted = (getattr(each.placement, role).search for each in (recipe, published))
        assert (own.percentiles, own.per_token) == (wanted.percentiles, wanted.per_token)
    own, wanted = (spelled_out(each.placement.attn_prob) for each in (recipe, published))
    assert own == wanted


def test_a_table_of_two_variants(
    ablation: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [variant for variant in ablation.VARIANTS if variant.title in ("default recipe", "no stage 1")]
    monkeypatch.setattr(ablation, "VARIANTS", tuple(chosen))
    ablation.run(["--config", QUICKSTART, *SMALL])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    head, default, without = lines[-3:]
    assert head == "| recipe | stage 1 | final | against default |"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (default, without)]
    assert cells[0][0] == "default recipe"
    assert 0 <= float(cells[0][1]) <= 100
    assert cells[0][3] == ""
    assert cells[1][:2] == ["no stage 1", ""]
    assert float(cells[1][3]) == pytest.approx(float(cells[1][2]) - float(cells[0][2]), abs=0.01)
