"""Rounding with compensation, against elimination one column after another and against rounding to nearest."""

from functools import partial

import pytest
import torch

from isvit_lightning.stages.compensation import round_columns

STEP = 0.25


def nearest(column: torch.Tensor) -> torch.Tensor:
    return (column / STEP).round().clamp(-4, 3) * STEP


def slow(weight: torch.Tensor, moment: torch.Tensor, damping: float) -> torch.Tensor:
    """Optimal brain surgery: after each column, the others minimize the error given those that are rounded."""
    moment = moment + damping * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    left, rounded = weight.clone(), torch.zeros_like(weight)
    free = moment.diagonal().argsort(descending=True).tolist()
    while free:
        column, *others = free
        rounded[:, column] = nearest(left[:, column])
        error = left[:, column] - rounded[:, column]
        if others:
            # The best change of the free columns for an error of one: a least-squares problem.
            solution = torch.linalg.solve(moment[others][:, others], moment[others][:, column])
            left[:, others] += error[:, None] * solution
        free = others
    return rounded


def problem(columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * columns, columns, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(5, columns, generator=generator, dtype=torch.float64) * 0.4, x.T @ x


def output_error(weight: torch.Tensor, rounded: torch.Tensor, moment: torch.Tensor) -> float:
    return float(((weight - rounded) @ moment @ (weight - rounded).T).trace())


@pytest.mark.parametrize("columns", [1, 2, 7, 64, 65, 130])
@pytest.mark.parametrize("damping", [1e-6, 0.01, 1.0])
def test_it_is_elimination_of_one_column_after_another(columns: int, damping: float) -> None:
    weight, moment = problem(columns)
    assert torch.equal(round_columns(weight, moment, nearest, damping), slow(weight, moment, damping))


def test_outputs_are_nearer_than_with_rounding_to_nearest() -> None:
    errors = [[0.0, 0.0] for _ in range(20)]
    for seed in range(20):
        weight, moment = problem(40, seed)
        errors[seed] = [
            output_error(weight, way(weight), moment)
            for way in (nearest, partial(round_columns, moment=moment, nearest=nearest))
        ]
    assert all(compensated < plain for plain, compensated in errors)
    assert sum(compensated for _, compensated in errors) < 0.5 * sum(plain for plain, _ in errors)


def test_inputs_that_are_independent_leave_nothing_to_make_up_for() -> None:
    weight, _ = problem(20)
    moment = torch.diag(torch.rand(20, dtype=torch.float64) + 0.1)
    assert torch.equal(round_columns(weight, moment, nearest), nearest(weight))


def test_a_column_whose_input_is_zero_is_rounded_by_itself() -> None:
    weight, moment = problem(6)
    moment[2], moment[:, 2] = 0, 0
    rounded = round_columns(weight, moment, nearest)
    assert torch.equal(rounded[:, 2], nearest(weight[:, 2]))
    assert bool(rounded.isfinite().all())


def test_what_is_given_is_left_alone() -> None:
    weight, moment = problem(6)
    before = weight.clone(), moment.clone()
    round_columns(weight, moment, nearest)
    assert torch.equal(weight, before[0])
    assert torch.equal(moment, before[1])
