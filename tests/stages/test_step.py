"""What steps tell of themselves, and the order that a recipe takes them in."""

from dataclasses import dataclass, replace

import pytest

from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import Recipe
from isvit_lightning.stages import Fold, Ranges, Step, Tune, TuningStage, UnitStage
from tests.helpers import image_batch, tiny_vit
from tests.stages.fitting import work_on

WEIGHTS = Ranges("weights", of="weights")
ORDERS: dict[str, tuple[list[Step], str | None]] = {
    "isvit": ([Tune("a", weights=False), Fold(), Tune("b")], None),
    "repq": ([Ranges(), Fold(), WEIGHTS], None),
    "tuned at once": ([Tune()], None),
    "fold first": ([Fold(), Tune()], "fold needs ranges of activations that nobody has chosen"),
    "weights first": ([WEIGHTS, Ranges()], "weights needs ranges of activations that nobody has chosen"),
    "one name twice": ([Ranges(), Fold("ranges"), Tune()], "Two steps of the recipe have the name ranges"),
    "float weights": ([Ranges(), Fold()], "No step of the recipe quantizes weights"),
    "float activations": ([Tune(activations=False)], "No step of the recipe chooses ranges of activations"),
    "nothing": ([], "No step of the recipe quantizes weights"),
}


@pytest.mark.parametrize("case", ORDERS)
def test_a_recipe_refuses_an_order_that_cannot_be_taken(case: str) -> None:
    steps, message = ORDERS[case]
    if message is None:
        assert [step.name for step in Recipe(steps=steps).steps] == [step.name for step in steps]
    else:
        with pytest.raises(IsvitError, match=message):
            Recipe(steps=steps)


@dataclass(frozen=True)
class Plain(Step):
    """A step from outside that says no more than it must."""

    name: str = "plain"

    @property
    def quantizes_weights(self) -> bool:
        return True

    def take(self, work: object, fit: object) -> None:
        """Nothing is done."""


def test_a_step_from_outside_may_stand_anywhere_and_has_a_row() -> None:
    assert (Plain().tunes, Plain().has_row) == (False, True)
    assert (Plain().needs_ranges, Plain().chooses_ranges) == (False, True)
    assert [step.name for step in Recipe(steps=[Plain(), Fold()]).steps] == ["plain", "fold"]
    with pytest.raises(TypeError, match="abstract"):
        Step()  # type: ignore[abstract]


def test_a_tuning_step_fits_one_stage_of_its_name() -> None:
    fitted: list[UnitStage] = []
    work = replace(work_on(tiny_vit(), image_batch(16, 4)), number=7)
    choice = Tune("mine", weights=False)
    assert (choice.tunes, choice.has_row, choice.quantizes_weights) == (True, True, False)
    choice.take(work, fitted.append)  # type: ignore[arg-type]
    (stage,) = fitted
    assert isinstance(stage, TuningStage)
    assert (stage.name, stage.choice, stage.quantized, stage.target) == ("mine", choice, work.quantized, work.target)
