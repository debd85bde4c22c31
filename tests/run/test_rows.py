"""Which steps of a recipe have a row of the results."""

from pathlib import Path

import pytest
from torch import nn

from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.run.results import Results
from isvit_lightning.run.rows import StepRows
from isvit_lightning.stages import Fold, Ranges, Step, Tune

STEPS: list[Step] = [Ranges("first"), Fold("folded"), Tune("tuned"), Tune("last")]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results.json", "net", "own", Bits(), {"calibration": 1, "evaluation": 1}, 0, 1)


def nothing(*_: object) -> None:
    raise AssertionError


def test_every_step_but_a_fold_and_the_last_one(results: Results) -> None:
    rows = StepRows(STEPS, results, nothing)
    assert [step.name for step in STEPS if rows.wants(step)] == ["first", "tuned"]


def test_a_row_that_is_measured_is_not_wanted(results: Results) -> None:
    rows = StepRows(STEPS, results, nothing)
    results.metrics["first"] = {"top1": 50.0}
    assert [step.name for step in STEPS if rows.wants(step)] == ["tuned"]


def test_a_row_is_measured_under_the_name_of_its_step(results: Results) -> None:
    seen: list[object] = []
    model = nn.Identity()
    StepRows(STEPS, results, lambda *given: seen.extend(given)).show(STEPS[2], model)
    assert seen == [results, "tuned", model]


def test_nothing_is_wanted_where_nothing_is_evaluated(results: Results) -> None:
    rows = StepRows(STEPS, results, None)
    assert not any(rows.wants(step) for step in STEPS)
    rows.show(STEPS[0], nn.Identity())
    assert results.metrics == {}


def test_steps_of_another_recipe_are_not_wanted(results: Results) -> None:
    rows = StepRows(STEPS, results, nothing)
    assert not any(rows.wants(step) for step in read_recipe("isvit").steps)
    assert not StepRows([], results, nothing).wants(STEPS[0])
