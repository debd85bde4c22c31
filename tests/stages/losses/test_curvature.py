"""Errors weighted by curvature: gradients against closed forms, terms relative to their first values, looks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import SINGLE, Unit, open_float
from isvit_lightning.recipe import Bits
from isvit_lightning.stages import Inputs, Schedule, StraightThrough, TuningStage
from isvit_lightning.stages.losses import (
    CurvatureError,
    DiagonalPlusLowRank,
    FiniteDifference,
    LeastSquares,
    SquaredGradient,
    Suffix,
    Surroundings,
    divergence,
)
from isvit_lightning.stages.losses.means import image_means
from isvit_lightning.stages.losses.probe import Probe
from isvit_lightning.stages.passes import Held
from tests.helpers import double_precision, image_batch, tiny_swin, tiny_vit
from tests.stages.fitting import STAGE3, EachStep, run, work_on

CPU = torch.device("cpu")
ALL = [SquaredGradient(), SquaredGradient(pooled=True), FiniteDifference(direction="signs"), LeastSquares(),
       DiagonalPlusLowRank(3)]  # fmt: skip


def surroundings(targets: torch.Tensor, outputs: torch.Tensor, suffix: Suffix | None, **changes: Any) -> Surroundings:
    unit = Unit("unit", nn.Identity(), lambda value: value)
    return Surroundings(unit, Held({SINGLE: targets}), CPU, lambda rows: {SINGLE: outputs[rows]}, suffix, **changes)


def linear_suffix(weight: torch.Tensor) -> Suffix:
    """Logits are ``weight`` times the outputs."""
    layer = nn.Linear(weight.shape[1], len(weight), bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return Suffix((Unit("head", layer, lambda value: value),))


def test_the_gradient_is_that_of_the_divergence() -> None:
    with double_precision():
        weight, wanted, given = torch.randn(4, 6), torch.randn(3, 6), torch.randn(3, 6)
        probe = Probe(surroundings(wanted, given, None), linear_suffix(weight), 5.0, 3)
        p, q = ((values @ weight.T / 5).softmax(dim=1) for values in (wanted, given))
        torch.testing.assert_close(probe.gradient(wanted, given), (q - p) @ weight / 5)
        assert float(probe.gradient(wanted, wanted).abs().max()) < 1e-15


def test_the_curvature_at_the_float_outputs_is_that_of_the_softmax() -> None:
    """Row sums of the Hessian of the divergence: of ``Wᵀ (diag(p) - p pᵀ) W``."""
    with double_precision():
        weight, outputs = torch.randn(4, 6), torch.randn(5, 6)
        probe = Probe(surroundings(outputs, outputs, None), linear_suffix(weight), 1.0, 5)
        (found,) = FiniteDifference(step=1e-5).measure(probe)
        p = (outputs @ weight.T).softmax(dim=1)
        hessians = [weight.T @ (each.diag() - torch.outer(each, each)) @ weight for each in p]
        torch.testing.assert_close(
            found, torch.stack([h.sum(dim=1).abs() for h in hessians]).mean(dim=0), rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
def test_a_network_that_reads_its_stream_by_norms_does_not_see_ones(build: Any, size: int) -> None:
    with double_precision():
        opened = open_float(build())
        data = {SINGLE: image_batch(size, 4)}
        for unit in opened.units[:2]:
            data = unit(unit.entered(data))
        around = surroundings(data[SINGLE], data[SINGLE], None)
        probe = Probe(around, Suffix(opened.units[2:]), 1.0, 4)
        (ones,), (signs,) = (FiniteDifference(direction=each).measure(probe) for each in ("ones", "signs"))
        assert float(ones.norm() / signs.norm()) < 1e-8


def test_means_are_those_of_the_first_images_in_chunks_and_halves() -> None:
    values = torch.randn(11, 2, 3)
    around = surroundings(values, values, None, chunk=2)
    for images in (11, 6, 1, 50):
        (found,) = image_means(around, images, lambda rows: [values[rows]])
        torch.testing.assert_close(found, values[:images].mean(dim=0))


def test_a_loss_is_what_it_was_told_to_be_at_first() -> None:
    targets, outputs = torch.randn(10, 6), torch.randn(10, 6)
    around = surroundings(targets, outputs, linear_suffix(torch.randn(4, 6)))
    places, data = torch.arange(10), ({SINGLE: outputs}, {SINGLE: targets})
    for estimator, terms in ((LeastSquares(), 1), (DiagonalPlusLowRank(1), 2)):
        loss = CurvatureError(estimator, initial=2.0).prepare(around)
        assert float(loss(*data, places)) == pytest.approx(2.0 * terms, rel=1e-5)
        # Half the error is a quarter of the loss, and no error is none.
        half = {SINGLE: (outputs + targets) / 2}
        assert float(loss(half, data[1], places)) == pytest.approx(0.5 * terms, rel=1e-5)
        assert float(loss(data[1], data[1], places)) == 0.0


def test_the_loss_of_logits_is_their_divergence() -> None:
    targets, outputs = torch.randn(10, 4), torch.randn(10, 4)
    loss = CurvatureError(images=6).prepare(surroundings(targets, outputs, Suffix()))
    some = torch.tensor([8, 2])
    expected = divergence(targets[some], outputs[some]).mean() / divergence(targets[:6], outputs[:6]).mean()
    assert float(loss({SINGLE: outputs[some]}, {SINGLE: targets[some]}, some)) == pytest.approx(float(expected))


def test_a_loss_looks_again_at_equal_distances() -> None:
    outputs = torch.randn(10, 6)
    around = surroundings(torch.randn(10, 6), outputs, linear_suffix(torch.randn(4, 6)))
    for estimator, steps, expected in (
        (DiagonalPlusLowRank(4), 10, [2, 4, 6]),
        (DiagonalPlusLowRank(4), 2, [1]),
        (LeastSquares(), 10, []),
    ):
        loss, looked = CurvatureError(estimator).prepare(around), []
        for step in range(steps):
            if loss.is_due(step, steps):
                loss.refresh()
                looked.append(step)
        assert looked == expected


def test_a_later_look_sees_the_unit_as_it_is_then() -> None:
    targets, outputs = torch.randn(10, 6), torch.randn(10, 6)
    around = surroundings(targets, outputs, linear_suffix(torch.randn(4, 6)))
    loss = CurvatureError(DiagonalPlusLowRank(2)).prepare(around)
    outputs.copy_(targets + torch.randn(10, 6) / 10)
    loss.refresh()
    assert float(loss({SINGLE: outputs}, {SINGLE: targets}, torch.arange(10))) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("estimator", ALL, ids=repr)
def test_units_are_tuned_to_a_smaller_loss(estimator: Any) -> None:
    seen: dict[str, list[float]] = {}

    def look(stage: Any, step: int) -> None:
        seen.setdefault(stage.unit.name, []).append(float(stage.last_loss))

    choice = replace(
        STAGE3,
        inputs=Inputs("quantized"),
        loss=CurvatureError(estimator, temperature=4.0, images=6),
        trainables=StraightThrough(2e-3, relative=False),
    )
    work = work_on(tiny_vit(), image_batch(16, 8), Schedule(20, 8), Bits(4, 4))
    run(TuningStage(choice, work), EachStep(look, after=True))
    assert len(seen) == 4
    for name in ("blocks.0", "blocks.1"):
        assert 0 < seen[name][-1] < seen[name][0], name


def test_what_is_no_chain_is_refused() -> None:
    around = surroundings(torch.randn(2, 6), torch.randn(2, 6), None)
    with pytest.raises(IsvitError, match="The loss CurvatureError reads the outputs of the network behind unit"):
        CurvatureError().prepare(around)


@pytest.mark.parametrize("values", [{"temperature": 0.0}, {"images": 0}, {"initial": -1.0}])
def test_numbers_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(IsvitError, match="expected a positive temperature and initial, and 1 or more images"):
        CurvatureError(**values)
