"""Passes a few images at a time, and rows that are recomputed from the images."""

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.stages.passes import Recomputed, run_in_chunks
from isvit_lightning.storage.caches import Caches

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 4, 5, 9, 10, 11])
def test_chunks_give_what_the_whole_gives(size: int) -> None:
    inputs = torch.randn(10, 3)
    lengths = []

    def square(part: torch.Tensor) -> torch.Tensor:
        lengths.append(len(part))
        return part.square().unsqueeze(1)

    outputs = run_in_chunks(square, inputs, CPU, Caches(chunk=size))
    assert torch.equal(outputs[:], inputs.square().unsqueeze(1))
    assert sum(lengths) == 10
    assert max(lengths) <= size


def test_values_beyond_float16_are_refused() -> None:
    with pytest.raises(IsvitError, match="larger than float16"):
        run_in_chunks(lambda part: part * 1e6, torch.ones(3, 1), CPU, Caches(precision="float16"))


def test_recomputed_rows_pass_everything_again_a_few_at_a_time() -> None:
    inputs, caches, lengths = torch.randn(10, 3), Caches(where="recompute", chunk=4), []

    def square(part: torch.Tensor) -> torch.Tensor:
        lengths.append(len(part))
        return part.square()

    squares = run_in_chunks(square, inputs, CPU, caches)
    sums = run_in_chunks(lambda part: part.sum(dim=1), squares, CPU, caches)
    assert isinstance(sums, Recomputed)
    assert (squares.shape, sums.shape, len(sums)) == ((10, 3), (10,), 10)
    lengths.clear()
    rows = torch.tensor([7, 0, 3, 3, 9])
    assert torch.equal(sums[rows], inputs[rows].square().sum(dim=1))
    assert torch.equal(sums[8:], inputs[8:].square().sum(dim=1))
    assert lengths == [4, 1, 2]


def test_recomputed_rows_carry_no_gradient() -> None:
    factor = torch.ones((), requires_grad=True)
    rows = run_in_chunks(lambda part: part * factor, torch.randn(3, 2), CPU, Caches(where="recompute"))
    assert not rows[:].requires_grad


@pytest.mark.parametrize("where", ["memory", "recompute"])
def test_chunks_are_halved_where_memory_runs_out(where: str) -> None:
    inputs, sizes = torch.randn(21, 3), []

    def square(part: torch.Tensor) -> torch.Tensor:
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(part))
        return part.square()

    found = run_in_chunks(square, inputs, CPU, Caches(where=where))  # type: ignore[arg-type]
    assert torch.equal(found[:], inputs.square())
    assert max(sizes) <= 3
