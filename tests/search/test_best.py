"""The best of some grids, group by group, and the error that they are compared by."""

import math

import pytest
import torch

from isvit_lightning.quantizers import Format, Grid, Log, Sulq, Uniform
from isvit_lightning.search.best import best_of, squared_error


def numbered(*values: float) -> Grid:
    """A grid of one number for each group."""
    return (torch.tensor(values).unsqueeze(1),)


def listed(*errors: list[float]) -> tuple[list[Grid], dict[float, torch.Tensor]]:
    """Grids that hold their own place in the list, and the error of each."""
    groups = len(errors[0])
    return [numbered(*[float(place)] * groups) for place in range(len(errors))], {
        float(place): torch.tensor(error) for place, error in enumerate(errors)
    }


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([[3.0, 1.0]], [0, 0]),
        ([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]], [2, 0]),
        ([[1.0, 1.0], [1.0, 0.5], [1.0, 0.5]], [0, 1]),
        ([[math.nan, 1.0], [5.0, math.nan]], [1, 0]),
        ([[1.0, math.nan], [math.nan, 1.0]], [0, 1]),
        ([[math.inf, 1.0], [1.0, math.inf]], [1, 0]),
        ([[math.nan, math.nan], [math.inf, 1.0]], [0, 1]),
        ([[math.nan, math.inf], [math.nan, math.inf]], [0, 0]),
    ],
)
def test_each_group_takes_its_first_smallest_error(errors: list[list[float]], expected: list[int]) -> None:
    grids, table = listed(*errors)
    (chosen,) = best_of(grids, lambda grid: table[float(grid[0][0])])
    assert chosen.flatten().tolist() == expected


def test_where_no_error_is_a_number_the_fallback_is_taken() -> None:
    errors = {0.0: torch.tensor([math.nan, math.inf, math.nan, 2.0]), 1.0: torch.tensor([math.inf, math.nan, 1.0, 3.0])}
    (chosen,) = best_of([numbered(*[place] * 4) for place in errors], lambda grid: errors[float(grid[0][0])], (7.0,))
    assert chosen.flatten().tolist() == [7, 7, 1, 0]


def test_all_numbers_of_a_grid_are_taken_together() -> None:
    grids = [tuple(torch.full((3, 1), 10.0 * place + number) for number in range(3)) for place in range(2)]
    errors = {0.0: torch.tensor([1.0, 0.0, 1.0]), 10.0: torch.tensor([0.0, 1.0, 0.0])}
    chosen = best_of(grids, lambda grid: errors[float(grid[0][0])])
    assert [number.flatten().tolist() for number in chosen] == [[10, 0, 10], [11, 1, 11], [12, 2, 12]]


def test_grids_are_made_one_at_a_time() -> None:
    made = []

    def grids() -> object:
        for place in range(5):
            made.append(place)
            yield numbered(place)

    def error(grid: Grid) -> torch.Tensor:
        assert len(made) == int(grid[0]) + 1
        return torch.ones(1)

    assert float(best_of(grids(), error)[0]) == 0  # type: ignore[arg-type]
    assert made == list(range(5))


FORMATS = {
    "uniform": (Uniform(), (0.21, 5.0)),
    "log": (Log(2), (2.5,)),
    "sulq": (Sulq(steps_per_octave=1), (0.25, -2.0, 0.3)),
}


def grid_of(numbers: tuple[float, ...], groups: int) -> Grid:
    """``numbers`` for each group, a little different in each."""
    factors = torch.linspace(1, 1.3, groups, dtype=torch.float64).unsqueeze(1)
    return tuple(factors * number for number in numbers)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("weighted", [None, 60, 12, 1])
def test_error_against_a_slow_loop(name: str, groups: int, weighted: int | None) -> None:
    form, numbers = FORMATS[name]
    grid = grid_of(numbers, groups)
    samples = torch.rand(groups, 60, dtype=torch.float64) * 3
    weights = None if weighted is None else torch.rand(groups, weighted, dtype=torch.float64)
    magnitude = float(samples.abs().max())
    found = squared_error(form, grid, 16, samples, weights)
    assert found.shape == (groups,)
    for group in range(groups):
        row = samples[group]
        values = form.reconstruct(row.clone(), tuple(number[group] for number in grid), 16).tolist()
        total = 0.0
        for place, (x, value) in enumerate(zip(row.tolist(), values, strict=True)):
            weight = 1.0 if weights is None else float(weights[group, place // (60 // weights.shape[1])])
            total += weight * ((value - x) / magnitude) ** 2
        assert float(found[group]) == pytest.approx(total / 60, rel=1e-12)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(1, 60_000), (7, 9_000), (300, 40)])
@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_change_the_error_by_no_more_than_rounding(
    name: str, shape: tuple[int, int], weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, numbers = FORMATS[name]
    grid, samples = grid_of(numbers, shape[0]), torch.rand(shape, dtype=torch.float64)
    weights = torch.rand(shape[0], shape[1] // 20, dtype=torch.float64) if weighted else None
    found = []
    for block in (2**30, 500):
        monkeypatch.setattr("isvit_lightning.search.best._BLOCK", block)
        found.append(squared_error(form, grid, 8, samples, weights))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", [Uniform(), Log(2)])
@pytest.mark.parametrize("exponent", [-37, -20, 0, 20, 37])
def test_squares_neither_vanish_nor_overflow(form: Format, exponent: int) -> None:
    samples = torch.rand(2, 100)
    scale = torch.full((2, 1), 0.2)
    zero = (torch.zeros(2, 1),) if isinstance(form, Uniform) else ()
    expected = squared_error(form, (scale, *zero), 4, samples)
    factor = 10.0**exponent
    found = squared_error(form, (scale * factor, *zero), 4, samples * factor)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_zeros_have_no_error() -> None:
    grid = (torch.ones(2, 1), torch.zeros(2, 1))
    assert squared_error(Uniform(), grid, 4, torch.zeros(2, 9)).tolist() == [0.0, 0.0]


def test_samples_are_left_as_they_are() -> None:
    samples = torch.rand(3, 40)
    before, weights = samples.clone(), torch.rand(3, 4)
    squared_error(Uniform(), (torch.full((3, 1), 0.3), torch.zeros(3, 1)), 4, samples, weights)
    assert torch.equal(samples, before)
