"""Rows of the results for the steps of a recipe."""

from collections.abc import Callable, Sequence

from torch import nn

from isvit_lightning.run.results import Results
from isvit_lightning.stages import Step


class StepRows:
    """A row of the results for each step but the last one, whose row is that of the result.

    Args:
        steps: of the recipe.
        results: where rows are written.
        measure: measures a row; None where nothing is evaluated.
    """

    def __init__(self, steps: Sequence[Step], results: Results, measure: Callable[..., None] | None) -> None:
        self._rows = [step.name for step in steps[:-1] if step.has_row] if measure else []
        self._results, self._measure = results, measure

    def wants(self, step: Step) -> bool:
        """Whether the step has a row that is not measured yet."""
        return step.name in self._rows and step.name not in self._results.metrics

    def show(self, step: Step, model: nn.Module) -> None:
        """Measure the row."""
        if self._measure is not None:
            self._measure(self._results, step.name, model)
