"""Shares of a batch, and one unit in the hands of an optimizer."""

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.stages.halving import MicroBatch
from isvit_lightning.stages.trainables import Group, TrainedWeight, UnitTrainables
from isvit_lightning.stages.tuned import Share, TunedUnit
from tests.helpers import quantizer_of

CPU, ACCELERATOR = torch.device("cpu"), torch.device("meta")
CHOSEN = torch.tensor([8, 3, 5, 0, 2, 7])


def places(parts: tuple[torch.Tensor, ...] | list[torch.Tensor]) -> list[list[int]]:
    return [part.tolist() for part in parts]


def test_a_process_carries_the_images_of_its_remainder() -> None:
    shares = [Share(None, 16, CPU, rank, 3, halves=True) for rank in range(3)]
    assert [places(share.groups(CHOSEN)) for share in shares] == [[[1, 3]], [[5]], [[0, 2, 4]]]


def test_one_process_forms_the_groups_of_two_where_images_are_shared() -> None:
    assert places(Share(None, 16, CPU, halves=True).groups(CHOSEN)) == [[0, 3, 4], [1, 2, 5]]
    assert places(Share(None, 16, CPU).groups(CHOSEN)) == [[0, 1, 2, 3, 4, 5]]
    # A group without images is none.
    assert places(Share(None, 16, CPU, halves=True).groups(torch.tensor([2, 4]))) == [[0, 1]]


@pytest.mark.parametrize(("usual", "groups"), [(6, 1), (5, 2)])
def test_an_accelerator_takes_the_whole_batch_at_once_where_it_can(usual: int, groups: int) -> None:
    assert len(Share(None, usual, ACCELERATOR, halves=True).groups(CHOSEN)) == groups


@pytest.mark.parametrize(("micro_batch", "sizes"), [(None, [5, 5]), (4, [4, 4, 2]), (10, [10]), (3, [3, 3, 3, 1])])
def test_micro_batches_are_about_equal_and_never_above_what_was_asked_for(
    micro_batch: int | None, sizes: list[int]
) -> None:
    members = torch.arange(10)
    share = Share(micro_batch, 4, CPU)
    parts = share.micro_batches(members, share.size)
    assert torch.equal(torch.cat(parts), members)
    assert [len(part) for part in parts] == sizes


def test_the_usual_size_is_a_bound_as_soon_as_memory_ran_out() -> None:
    share, members = Share(None, 8, CPU), torch.arange(9)
    assert [len(part) for part in share.micro_batches(members, 8)] == [9]
    assert max(len(part) for part in share.micro_batches(members, 4)) <= 4
    assert share.micro_batches(members[:0], 8) == ()


class Line:
    """Fits ``y = x · w`` for rows ``x``, with a penalty and a floor by choice."""

    def __init__(self, micro_batch: int | None = None, halves: bool = False, floor: float | None = None) -> None:
        self.x, self.y = torch.randn(12, 3), torch.randn(12)
        self.weight = torch.ones(3)
        self.optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=1.0)
        share = Share(micro_batch, 16, CPU, halves=halves)
        bound = None if floor is None else torch.tensor(floor)
        self.tuned = TunedUnit(
            UnitTrainables([Group([self.weight], 0.5, bound)]), [], self.optimizer, share, MicroBatch(share.size)
        )

    def loss_of(self, chosen: torch.Tensor) -> torch.Tensor:
        return (self.x[chosen] @ self.weight - self.y[chosen]).square().mean()

    def differentiate(self, chosen: torch.Tensor) -> None:
        self.tuned.differentiate(chosen, lambda part: self.loss_of(chosen[part]), lambda loss: loss.backward(), "line")
        self.tuned.finish_gradients(0.0)


@pytest.mark.parametrize(("micro_batch", "halves"), [(None, False), (None, True), (2, False), (3, True), (1, True)])
def test_gradients_and_loss_are_those_of_the_whole_batch(micro_batch: int | None, halves: bool) -> None:
    line, chosen = Line(micro_batch, halves), torch.tensor([11, 4, 2, 9, 7])
    for _ in range(2):  # what an earlier step left does not count
        line.differentiate(chosen)
    whole = line.loss_of(chosen)
    (expected,) = torch.autograd.grad(whole, line.weight)
    torch.testing.assert_close(line.weight.grad, expected)
    torch.testing.assert_close(line.tuned.last_loss, whole.detach())
    torch.testing.assert_close(line.tuned.gradients, torch.cat([expected, whole.detach().view(1)]))


def test_the_optimizer_holds_the_unit_alone_and_rates_decay() -> None:
    line = Line()
    (group,) = line.optimizer.param_groups
    assert group["params"] == [line.weight]
    assert line.weight.requires_grad
    line.differentiate(torch.arange(12))
    before, gradient = line.weight.detach().clone(), line.weight.grad
    assert gradient is not None
    line.tuned.step(0.1, line.optimizer.step)
    torch.testing.assert_close(line.weight.detach(), before - 0.5 * 0.1 * gradient)


def test_nothing_falls_below_its_floor() -> None:
    line = Line(floor=0.9)
    line.differentiate(torch.arange(12))
    with torch.no_grad():
        line.weight.grad = torch.tensor([1.0, -1.0, 0.0])
    line.tuned.step(1.0, line.optimizer.step)
    assert line.weight.tolist() == pytest.approx([0.9, 1.5, 1.0])


def test_the_best_of_the_offered_states_comes_back() -> None:
    line = Line()
    for step, loss in enumerate((3.0, 1.0, 2.0)):
        with torch.no_grad():
            line.weight.fill_(step)
        line.tuned.offer(torch.tensor(loss), step, 3)
    with torch.no_grad():
        line.weight.fill_(torch.nan)
    assert not line.tuned.finite(torch.tensor(1.0))
    assert float(line.tuned.roll_back()) == 1
    assert line.weight.tolist() == [1.0] * 3
    assert line.tuned.finite(torch.tensor(1.0))


def test_states_are_offered_ten_times_at_most() -> None:
    line = Line()
    for step in range(100):
        with torch.no_grad():
            line.weight.fill_(step)
        line.tuned.offer(torch.tensor(1.0 - 0.01 * step), step, 100)
    line.tuned.roll_back()
    assert line.weight.tolist() == [90.0] * 3


def test_a_closed_unit_has_no_gradients() -> None:
    class Penalized(UnitTrainables):
        def penalty(self, progress: float) -> torch.Tensor:
            return self.groups[0].tensors[0].sum() * progress

    weight = torch.ones(2)
    optimizer = torch.optim.Adam([torch.zeros((), requires_grad=True)])
    share = Share(None, 16, CPU)
    tuned = TunedUnit(Penalized([Group([weight], 0.1)]), [], optimizer, share, MicroBatch(16))
    tuned.differentiate(torch.arange(3), lambda part: weight.sum() * 2, lambda loss: loss.backward(), "unit")
    tuned.finish_gradients(0.25)
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.25, 2.25]
    tuned.step(1.0, optimizer.step)
    assert optimizer.state
    tuned.close()
    assert not weight.requires_grad
    assert weight.grad is None
    assert not optimizer.state


def test_a_held_weight_is_quantized_once_for_all_micro_batches() -> None:
    weight, x = torch.randn(4), torch.randn(8, 4)
    quantizer = quantizer_of(bits=3)
    quantizer.calibrate(weight)
    calls: list[int] = []

    def quantize() -> torch.Tensor:
        calls.append(1)
        return quantizer(weight)

    optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=1.0)
    trained = UnitTrainables([Group([weight], 0.1)], [TrainedWeight(quantizer, weight, quantize)])
    tuned = TunedUnit(trained, [], optimizer, Share(2, 16, CPU), MicroBatch(2))

    def loss_of(part: torch.Tensor) -> torch.Tensor:
        return (x[part] @ quantizer(weight)).square().mean()

    tuned.differentiate(torch.arange(8), loss_of, lambda loss: loss.backward(), "unit")
    assert len(calls) == 1
    tuned.finish_gradients(0.0)
    found = weight.grad
    (expected,) = torch.autograd.grad(loss_of(torch.arange(8)), weight)
    assert found is not None
    torch.testing.assert_close(found, expected)
    assert quantizer.held is None


def test_a_unit_with_nothing_to_tune_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=1.0)
    with pytest.raises(
        IsvitError, match="nothing to tune in a unit, expected weights or scales .* range_learning_rate"
    ):
        TunedUnit(UnitTrainables([]), [], optimizer, Share(None, 16, CPU), MicroBatch(16))
