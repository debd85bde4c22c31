"""What each choice of the method is worth: the default recipe, and the same with one choice changed.

Arguments are those of ``isvit fit`` for a classifier; a line of the table is printed as soon as it is known::

    python benchmarks/ablation.py --config configs/bits/w3a3.yaml --config configs/cifar10/swin_micro.yaml \
        --model.iterations 25
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isvit_lightning.cli import IsvitCLI
from isvit_lightning.program import main
from isvit_lightning.quantizers import Uniform
from isvit_lightning.recipe import Choice, Recipe, read_recipe
from isvit_lightning.run.runner import Runner
from isvit_lightning.search import Percentiles
from isvit_lightning.stages import Fold, Inputs, Ranges, SquaredError, Step, StraightThrough, Tune

Change = Callable[[Recipe], Recipe]

_PER_TOKEN = ("proj_in", "gelu_out", "reduction_in", "head_in", "linear_in")
"""Roles whose ranges count the errors of each token relative to its variance."""


@dataclass(frozen=True)
class Variant:
    """The recipe with one choice changed.

    Args:
        title: the choice in words.
        change: makes the recipe of the configured one.
    """

    title: str
    change: Change


def steps(kind: type[Step], *names: str, **changes: Any) -> Change:
    """Other values of some fields of the steps of a kind; all of them, or those with one of some names."""

    def changed(step: Any) -> Step:
        return replace(step, **changes) if isinstance(step, kind) and (not names or step.name in names) else step

    return lambda recipe: replace(recipe, steps=[changed(step) for step in recipe.steps])


def choices(*roles: str, **changes: Any) -> Change:
    """Other values of some fields of the choices for some roles."""
    return lambda recipe: replace(
        recipe,
        placement=replace(
            recipe.placement, **{role: replace(getattr(recipe.placement, role), **changes) for role in roles}
        ),
    )


def published_shifts(recipe: Recipe) -> Recipe:
    """The recipe with the list of shifts of the published one."""
    own: Any = recipe.placement.attn_prob.search
    published: Any = read_recipe("isvit_published").placement.attn_prob.search
    return choices("attn_prob", search=replace(own, free=published.free))(recipe)


def without_stage1(recipe: Recipe) -> Recipe:
    """The recipe that only chooses ranges where it would tune with float weights."""
    return replace(recipe, steps=[Ranges() if step.name == "stage1" else step for step in recipe.steps])


VARIANTS = (
    Variant("default recipe", lambda recipe: recipe),
    Variant("learning rate 6e-4 for all weights", steps(Tune, trainables=StraightThrough(6e-4, relative=False))),
    Variant("learning rate 2e-4 for all weights", steps(Tune, trainables=StraightThrough(2e-4, relative=False))),
    Variant("stage 1 on float inputs (published)", steps(Tune, "stage1", inputs=Inputs("float"))),
    Variant("stage 1 on a mixture of both", steps(Tune, "stage1", inputs=Inputs("mixed"))),
    Variant("stage 3 on quantized inputs only (published)", steps(Tune, "stage3", inputs=Inputs("quantized"))),
    Variant("median instead of mean in stage 2", steps(Fold, statistic="median")),
    Variant("uniform softmax quantizer", choices("attn_prob", format=Uniform(), search=Percentiles())),
    Variant("published list of shifts", published_shifts),
    Variant("learning rate 4e-5 (published)", steps(Tune, trainables=StraightThrough(4e-5, relative=False))),
    Variant("stage 3 on float inputs only", steps(Tune, "stage3", inputs=Inputs("float"))),
    Variant("ranges anew before stage 3", steps(Tune, "stage3", recalibrate="stage")),
    Variant("ranges anew before each unit of stage 3", steps(Tune, "stage3", recalibrate="unit")),
    Variant("scales of activations fixed", steps(Tune, range_learning_rate=0.0)),
    Variant("squared loss (published)", steps(Tune, loss=SquaredError())),
    Variant("ranges by the squared error (published)", choices(*_PER_TOKEN, search=Percentiles())),
    Variant("patch merging in stage 2 too", choices("reduction_in", granularity="channel", search=Choice().search)),
    Variant("no stage 1", without_stage1),
    Variant("everything as published", lambda _: read_recipe("isvit_published")),
)


class AblationCLI(IsvitCLI):
    """`isvit` with another recipe than the configured one."""

    change: Change = staticmethod(VARIANTS[0].change)

    def _runner(self) -> Runner:
        self.model.recipe = self.change(self.model.recipe)
        return super()._runner()


def measure(variant: Variant, arguments: list[str], directory: Path) -> dict[str, dict[str, float]]:
    """The metrics of one run of ``isvit fit``."""
    program = type("AblationCLI", (AblationCLI,), {"change": staticmethod(variant.change)})
    if main(["fit", *arguments, "--baselines", "[]", "--trainer.default_root_dir", str(directory)], program):
        raise SystemExit(2)
    metrics: dict[str, dict[str, float]] = json.loads((directory / "results.json").read_text())["metrics"]
    return metrics


def run(arguments: list[str]) -> None:
    """Measure all variants."""
    print("| recipe | stage 1 | final | against default |\n|---|---|---|---|", flush=True)
    base = 0.0
    for index, variant in enumerate(VARIANTS):
        with tempfile.TemporaryDirectory() as folder:
            metrics = measure(variant, arguments, Path(folder))
        final = metrics["quantized"]["top1"]
        base = base if index else final
        stage1 = f"{metrics['stage1']['top1']:.2f}" if "stage1" in metrics else ""
        difference = f"{final - base:+.2f}" if index else ""
        print(f"| {variant.title} | {stage1} | {final:.2f} | {difference} |", flush=True)


if __name__ == "__main__":
    run(sys.argv[1:])
