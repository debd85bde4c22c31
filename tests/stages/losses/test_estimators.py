"""Estimators of curvature against a quadratic whose Hessian is known, in float64."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import SINGLE, Unit
from isvit_lightning.stages.losses import (
    DiagonalPlusLowRank,
    Estimator,
    FiniteDifference,
    LeastSquares,
    SquaredGradient,
    Suffix,
    Surroundings,
)
from isvit_lightning.stages.losses.probe import Probe
from isvit_lightning.stages.passes import Held

IMAGES, TOKENS, CHANNELS = 7, 2, 3
SIZE = TOKENS * CHANNELS


@dataclass(frozen=True)
class QuadraticProbe(Probe):
    """Gradients are those of ``½ (z - O)ᵀ H (z - O)``."""

    hessian: torch.Tensor = field(default_factory=torch.Tensor)

    def gradient(self, wanted: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        return ((outputs - wanted).flatten(1) @ self.hessian).view_as(outputs)


def probe_of(hessian: torch.Tensor, errors: torch.Tensor) -> QuadraticProbe:
    """A probe of a unit whose outputs are off by ``errors (images, tokens, channels)``."""
    targets = torch.randn(len(errors), TOKENS, CHANNELS, dtype=torch.float64)
    unit = Unit("unit", torch.nn.Identity(), lambda value: value)
    around = Surroundings(
        unit, Held({SINGLE: targets}), torch.device("cpu"), lambda rows: {SINGLE: (targets + errors)[rows]}, chunk=2
    )
    return QuadraticProbe(around, Suffix(), 1.0, len(errors), hessian)


def some(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def errors_of(images: int = IMAGES) -> torch.Tensor:
    return some(images, TOKENS, CHANNELS)


def positive() -> torch.Tensor:
    """A Hessian with eigenvalues above zero."""
    root = some(SIZE, SIZE)
    return root @ root.T / SIZE


PLACES = torch.tensor([5, 0, 5])


def terms(estimator: Estimator, probes: Sequence[Probe], errors: torch.Tensor) -> list[torch.Tensor]:
    curvature = estimator.curvature([estimator.measure(probe) for probe in probes])
    return list(curvature(errors, PLACES))


def test_squared_gradients_are_those_of_each_image() -> None:
    hessian, seen, errors = positive(), errors_of(), errors_of(3)
    gradients = seen.flatten(1) @ hessian
    (own,) = terms(SquaredGradient(), [probe_of(hessian, seen)], errors)
    expected = [sum(errors.flatten(1)[row] ** 2 * gradients[image] ** 2) for row, image in enumerate(PLACES)]
    torch.testing.assert_close(own, torch.stack(expected))
    (floored,) = terms(SquaredGradient(floor=0.5), [probe_of(hessian, seen)], errors)
    weights = (gradients[PLACES].abs() + 0.5) ** 2
    torch.testing.assert_close(floored, (errors.flatten(1) ** 2 * weights).sum(dim=1))
    (pooled,) = terms(SquaredGradient(pooled=True), [probe_of(hessian, seen)], errors)
    torch.testing.assert_close(pooled, errors.flatten(1) ** 2 @ (gradients**2).mean(dim=0))


def test_differences_along_ones_are_the_sums_of_the_rows() -> None:
    hessian, errors = positive(), errors_of(3)
    (found,) = terms(FiniteDifference(), [probe_of(hessian, errors_of())], errors)
    torch.testing.assert_close(found, errors.flatten(1) ** 2 @ hessian.sum(dim=1).abs())


def test_differences_along_signs_are_a_diagonal_or_the_norms_of_rows() -> None:
    diagonal, errors = torch.rand(SIZE, dtype=torch.float64), errors_of(3)
    (found,) = terms(FiniteDifference(direction="signs"), [probe_of(diagonal.diag(), errors_of())], errors)
    torch.testing.assert_close(found, errors.flatten(1) ** 2 @ diagonal)
    hessian = positive()
    (weights,) = FiniteDifference(direction="signs").measure(probe_of(hessian, errors_of(2000)))
    norms = hessian.square().sum(dim=1).sqrt()
    assert bool((weights.flatten() / norms > 0.7).all())
    # The mean of sizes is at most the root of the mean of squares, which is the norm, but for the noise of the draws.
    assert bool((weights.flatten() / norms < 1.05).all())


def test_signs_depend_on_the_image_alone() -> None:
    choice, outputs = FiniteDifference(direction="signs"), errors_of(3)
    drawn = choice._direction(torch.tensor([4, 0, 4]), outputs)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    other = FiniteDifference(direction="signs", seed=1)._direction(torch.tensor([4, 0, 4]), outputs)
    assert not torch.equal(drawn, other)


def test_least_squares_find_a_diagonal_hessian() -> None:
    diagonal, errors = torch.rand(SIZE, dtype=torch.float64), errors_of(3)
    (found,) = terms(LeastSquares(rank_one=False), [probe_of(diagonal.diag(), errors_of())], errors)
    torch.testing.assert_close(found, errors.flatten(1) ** 2 @ diagonal / 2)


def test_least_squares_are_those_of_the_normal_equations() -> None:
    hessian, seen, errors = positive(), errors_of(), errors_of(3)
    gradients = seen.flatten(1) @ hessian
    slow = [
        max(0.0, float(torch.linalg.lstsq(seen.flatten(1)[:, [i]], gradients[:, [i]]).solution)) for i in range(SIZE)
    ]
    (found,) = terms(LeastSquares(rank_one=False), [probe_of(hessian, seen)], errors)
    torch.testing.assert_close(found, errors.flatten(1) ** 2 @ torch.tensor(slow, dtype=torch.float64) / 2)


def test_least_squares_find_a_hessian_of_rank_one() -> None:
    direction, errors = some(SIZE), errors_of(3)
    probe = probe_of(torch.outer(direction, direction), errors_of())
    (both,) = terms(LeastSquares(), [probe], errors)
    (diagonal,) = terms(LeastSquares(rank_one=False), [probe], errors)
    torch.testing.assert_close(both - diagonal, (errors.flatten(1) @ direction) ** 2 / 2)


def test_looks_at_all_directions_find_the_product_of_the_information_with_itself() -> None:
    """With as many looks as elements, and errors and gradients without negative signs."""
    hessian, errors = torch.rand(SIZE, SIZE, dtype=torch.float64), errors_of(3)
    hessian = hessian + hessian.T
    seen = [torch.rand(1, TOKENS, CHANNELS, dtype=torch.float64).expand(4, -1, -1) for _ in range(SIZE)]
    low, diagonal = terms(DiagonalPlusLowRank(SIZE, damping=0.0), [probe_of(hessian, each) for each in seen], errors)
    torch.testing.assert_close(low, (errors.flatten(1).abs() @ hessian).square().sum(dim=1))
    gradients = torch.stack([each[0].flatten() @ hessian for each in seen]).mean(dim=0)
    torch.testing.assert_close(diagonal, errors.flatten(1) ** 2 @ gradients)


def test_fewer_looks_find_what_lies_in_their_directions() -> None:
    hessian, errors = positive(), errors_of(3)
    seen = [errors_of(), errors_of()]
    estimator = DiagonalPlusLowRank(2, damping=0.1)
    low, _ = terms(estimator, [probe_of(hessian, each) for each in seen], errors)
    sizes = torch.stack([each.flatten(1).abs().mean(dim=0) for each in seen])
    gammas = torch.stack([(each.flatten(1) @ hessian).abs().mean(dim=0) for each in seen])
    gram = sizes @ sizes.T
    gram = gram + 0.1 * gram.trace() / 2 * torch.eye(2)
    along = errors.flatten(1).abs() @ gammas.T
    torch.testing.assert_close(low, torch.stack([a @ torch.linalg.inv(gram) @ a for a in along]))


def test_looks_that_see_the_same_are_damped() -> None:
    hessian, seen, errors = positive(), errors_of(), errors_of(3)
    found = terms(DiagonalPlusLowRank(2), [probe_of(hessian, seen), probe_of(hessian, seen)], errors)
    assert all(bool(term.isfinite().all()) and bool((term >= 0).all()) for term in found)


@pytest.mark.parametrize(
    "estimator", [SquaredGradient(), FiniteDifference(), LeastSquares(), DiagonalPlusLowRank(1)], ids=repr
)
def test_a_unit_without_errors_has_finite_curvature(estimator: Estimator) -> None:
    nothing = torch.zeros(IMAGES, TOKENS, CHANNELS, dtype=torch.float64)
    found = terms(estimator, [probe_of(positive(), nothing)], errors_of(3))
    assert all(bool(term.isfinite().all()) for term in found)


@pytest.mark.parametrize(
    ("build", "values", "message"),
    [
        (SquaredGradient, {"floor": -1.0}, "floor of -1.0, expected 0 or more"),
        (FiniteDifference, {"step": 0.0}, "step of 0.0, expected a positive one"),
        (DiagonalPlusLowRank, {"snapshots": 0}, "expected 1 or more snapshots"),
        (DiagonalPlusLowRank, {"damping": -0.1}, "a damping of 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(build: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(IsvitError, match=message):
        build(**values)
