"""Passes a few images at a time, and rows that are recomputed from the images."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import SINGLE, Data
from isvit_lightning.stages.passes import Held, Pass, Recomputed, Rows, run_in_chunks
from isvit_lightning.storage.caches import Caches

CPU = torch.device("cpu")


def held(tensor: torch.Tensor) -> Held:
    return Held({SINGLE: tensor})


def on_tensors(function: Callable[[torch.Tensor], torch.Tensor]) -> Pass:
    """``function`` of the one tensor of the data."""
    return lambda data: {SINGLE: function(data[SINGLE])}


def all_of(rows: Rows) -> torch.Tensor:
    return rows[:][SINGLE]


@pytest.mark.parametrize("size", [1, 4, 5, 9, 10, 11])
def test_chunks_give_what_the_whole_gives(size: int) -> None:
    inputs = torch.randn(10, 3)
    lengths = []

    def square(part: torch.Tensor) -> torch.Tensor:
        lengths.append(len(part))
        return part.square().unsqueeze(1)

    outputs = run_in_chunks(on_tensors(square), held(inputs), CPU, Caches(chunk=size))
    assert torch.equal(all_of(outputs), inputs.square().unsqueeze(1))
    assert sum(lengths) == 10
    assert max(lengths) <= size


def test_values_beyond_float16_are_refused() -> None:
    with pytest.raises(IsvitError, match="larger than float16"):
        run_in_chunks(on_tensors(lambda part: part * 1e6), held(torch.ones(3, 1)), CPU, Caches(precision="float16"))


def test_recomputed_rows_pass_everything_again_a_few_at_a_time() -> None:
    inputs, caches, lengths = torch.randn(10, 3), Caches(where="recompute", chunk=4), []

    def square(part: torch.Tensor) -> torch.Tensor:
        lengths.append(len(part))
        return part.square()

    squares = run_in_chunks(on_tensors(square), held(inputs), CPU, caches)
    sums = run_in_chunks(on_tensors(lambda part: part.sum(dim=1)), squares, CPU, caches)
    assert isinstance(sums, Recomputed)
    assert (squares.shapes, sums.shapes, len(sums)) == ({SINGLE: (10, 3)}, {SINGLE: (10,)}, 10)
    lengths.clear()
    rows = torch.tensor([7, 0, 3, 3, 9])
    assert torch.equal(sums[rows][SINGLE], inputs[rows].square().sum(dim=1))
    assert torch.equal(sums[8:][SINGLE], inputs[8:].square().sum(dim=1))
    assert lengths == [4, 1, 2]


def test_recomputed_rows_carry_no_gradient() -> None:
    factor = torch.ones((), requires_grad=True)
    rows = run_in_chunks(
        on_tensors(lambda part: part * factor), held(torch.randn(3, 2)), CPU, Caches(where="recompute")
    )
    assert not all_of(rows).requires_grad


@pytest.mark.parametrize("where", ["memory", "recompute"])
def test_chunks_are_halved_where_memory_runs_out(where: Literal["memory", "recompute"]) -> None:
    inputs, sizes = torch.randn(21, 3), []

    def square(part: torch.Tensor) -> torch.Tensor:
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(part))
        return part.square()

    found = run_in_chunks(on_tensors(square), held(inputs), CPU, Caches(where=where))
    assert torch.equal(all_of(found), inputs.square())
    assert max(sizes) <= 3


def both(data: Data) -> Data:
    """Two tensors, of other sizes and in another order than those that are read."""
    return {"sum": data["b"].flatten(1).sum(dim=1) + data["a"], "a": data["a"].unsqueeze(1)}


def test_several_tensors_pass_together_and_keep_their_names() -> None:
    first, second = torch.randn(10), torch.randn(10, 2, 3)
    outputs = run_in_chunks(both, Held({"a": first, "b": second}), CPU, Caches(chunk=4))
    assert len(outputs) == 10
    assert outputs.shapes == {"sum": (10,), "a": (10, 1)}
    rows = outputs[torch.tensor([3, 3, 0])]
    assert torch.equal(rows["a"], first[[3, 3, 0]].unsqueeze(1))
    torch.testing.assert_close(rows["sum"], (first + second.flatten(1).sum(dim=1))[[3, 3, 0]])


def test_rows_are_kept_in_half_precision_and_read_in_float32() -> None:
    inputs = torch.randn(5, 3)
    kept = run_in_chunks(on_tensors(lambda part: part), held(inputs), CPU, Caches(precision="float16"))
    assert isinstance(kept, Held)
    assert kept.tensors[SINGLE].dtype is torch.float16
    assert torch.equal(all_of(kept), inputs.half().float())
