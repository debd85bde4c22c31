"""Errors of features and of the unit itself, each relative to its first value."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import SINGLE, Unit
from isvit_lightning.recipe import Bits
from isvit_lightning.stages import FeatureError, Inputs, Schedule, StraightThrough, TuningStage
from isvit_lightning.stages.losses import Suffix, Surroundings
from isvit_lightning.stages.passes import Held
from tests.helpers import double_precision, image_batch, tiny_swin, tiny_vit
from tests.stages.fitting import STAGE3, EachStep, run, work_on

PLACES = torch.tensor([7, 0, 2])


def surroundings(targets: torch.Tensor, outputs: torch.Tensor, suffix: Suffix | None) -> Surroundings:
    unit = Unit("unit", nn.Identity(), lambda value: value)
    return Surroundings(
        unit, Held({SINGLE: targets}), torch.device("cpu"), lambda rows: {SINGLE: outputs[rows]}, suffix, chunk=3
    )


def test_errors_of_features_and_of_outputs_are_relative_to_their_first_means() -> None:
    with double_precision():
        inner, targets, outputs = nn.Linear(6, 4).requires_grad_(False), torch.randn(9, 6), torch.randn(9, 6)
        head = Unit("head", nn.Linear(4, 2).requires_grad_(False), lambda value: value.square())
        suffix = Suffix((Unit("block", inner, lambda value: value.sin()), head))
        loss = FeatureError(local=3.0, images=5).prepare(surroundings(targets, outputs, suffix))
        tuned = torch.randn(3, 6).requires_grad_()
        found = loss({SINGLE: tuned}, {SINGLE: targets[PLACES]}, PLACES)

        def features(values: torch.Tensor) -> torch.Tensor:
            return inner(values.sin()).square()

        first = (features(outputs) - features(targets))[:5].square().mean()
        own = (outputs - targets)[:5].square().mean()
        expected = (features(tuned) - features(targets[PLACES])).square().mean() / first
        expected = expected + 3 * (tuned - targets[PLACES]).square().mean() / own
        torch.testing.assert_close(found, expected)
        slopes = [torch.autograd.grad(value, tuned)[0] for value in (found, expected)]
        torch.testing.assert_close(*slopes)


def test_the_last_unit_has_its_own_error() -> None:
    targets, outputs = torch.randn(9, 6), torch.randn(9, 6)
    loss = FeatureError(images=5).prepare(surroundings(targets, outputs, Suffix()))
    found = loss({SINGLE: outputs[PLACES]}, {SINGLE: targets[PLACES]}, PLACES)
    expected = (outputs - targets)[PLACES].square().mean() / (outputs - targets)[:5].square().mean()
    assert float(found) == pytest.approx(float(expected))


@pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
def test_units_are_tuned_to_a_smaller_loss(build: Any, size: int) -> None:
    seen: dict[str, list[float]] = {}

    def look(stage: Any, step: int) -> None:
        seen.setdefault(stage.unit.name, []).append(float(stage.last_loss))

    choice = replace(
        STAGE3, inputs=Inputs("quantized"), loss=FeatureError(), trainables=StraightThrough(2e-3, relative=False)
    )
    work = work_on(build(), image_batch(size, 8), Schedule(15, 8), Bits(4, 4))
    run(TuningStage(choice, work), EachStep(look, after=True))
    blocks = [name for name in seen if "blocks" in name]
    assert len(blocks) >= 2
    for name in blocks:
        # All images are in the batch, so that the first loss is 1 + local.
        assert seen[name][0] == pytest.approx(3.0, rel=1e-4), name
        assert 0 < seen[name][-1] < seen[name][0], name


def test_what_is_no_chain_is_refused() -> None:
    around = surroundings(torch.randn(2, 6), torch.randn(2, 6), None)
    with pytest.raises(IsvitError, match="The loss FeatureError reads the outputs of the network behind unit"):
        FeatureError().prepare(around)


@pytest.mark.parametrize("values", [{"local": -1.0}, {"images": 0}])
def test_numbers_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(IsvitError, match="expected a weight local of 0 or more and 1 or more images"):
        FeatureError(**values)
