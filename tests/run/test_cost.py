"""The float step is timed at one batch, in micro-batches, on the middle unit, and changes nothing."""

import statistics
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.networks import SINGLE, OpenedNetwork, Unit, open_float
from isvit_lightning.run import cost
from isvit_lightning.run.cost import float_block_step, float_step_seconds
from isvit_lightning.stages.losses import reconstruction_loss
from tests.helpers import image_batch, tiny_vit


class Seen(nn.Module):
    """Notes the images of each pass, and whether it was made for gradients."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.passes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.passes.append(len(x))
        return self.inner(x)


def watched(depth: int = 3) -> tuple[OpenedNetwork, list[Seen]]:
    """A float network whose units are watched."""
    network = open_float(tiny_vit(depth=depth))
    seen = [Seen(unit.module) for unit in network.units]
    units = tuple(Unit(unit.name, each, unit.enter) for unit, each in zip(network.units, seen, strict=True))
    return OpenedNetwork(network.model, units), seen


def unit_with_data(rows: int = 5) -> tuple[Unit, Seen, torch.Tensor, torch.Tensor]:
    module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 4)).requires_grad_(False)
    seen = Seen(module)
    return Unit("unit", seen, nn.Identity()), seen, torch.randn(rows, 3, 4), torch.randn(rows, 3, 4)


def test_the_unit_is_given_back_as_it_was() -> None:
    unit, _, inputs, targets = unit_with_data()
    before = {name: tensor.clone() for name, tensor in unit.module.state_dict().items()}
    seconds = float_step_seconds(unit, {SINGLE: inputs}, {SINGLE: targets}, 2)
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in unit.module.state_dict().items())
    assert all(weight.grad is None and not weight.requires_grad for weight in unit.module.parameters())


@pytest.mark.parametrize(("micro_batch", "passes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (64, [5])])
def test_a_step_takes_a_batch_in_micro_batches(micro_batch: int, passes: list[int]) -> None:
    unit, seen, inputs, targets = unit_with_data()
    float_step_seconds(unit, {SINGLE: inputs}, {SINGLE: targets}, micro_batch)
    assert seen.passes == passes * 4  # a warm-up and three


@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_gradients_are_those_of_the_mean_loss(micro_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    unit, seen, inputs, targets = unit_with_data()
    linears = [module for module in seen.inner if isinstance(module, nn.Linear)]
    weights = [parameter for linear in linears for parameter in linear.parameters()]
    stepped: list[list[torch.Tensor]] = []

    class Adam(torch.optim.Adam):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            stepped.append([weight.grad.clone() for weight in self.param_groups[0]["params"]])

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    float_step_seconds(unit, {SINGLE: inputs}, {SINGLE: targets}, micro_batch)
    for weight in weights:
        weight.requires_grad_(True)
    expected = torch.autograd.grad(reconstruction_loss(unit({SINGLE: inputs})[SINGLE], targets), weights)
    assert len(stepped) == 4
    for gradients in stepped:
        for gradient, wanted in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, wanted)


def test_an_accelerator_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert cost._now(torch.device("cpu")) > 0
    assert waited == []
    assert cost._now(torch.device("cuda")) > 0
    assert waited == [torch.device("cuda")]


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_middle_unit_steps_on_the_first_batch(depth: int) -> None:
    network, seen = watched(depth)
    assert float_block_step(network, image_batch(count=6), 4, 3) > 0
    middle = len(seen) // 2
    assert network.units[middle].name.startswith("blocks.")
    assert seen[middle].passes == [3, 1] * 4
    assert all(not each.passes for place, each in enumerate(seen) if place != middle)


def test_fewer_images_than_a_batch() -> None:
    network, seen = watched()
    assert float_block_step(network, image_batch(count=2), 64, None) > 0
    assert seen[len(seen) // 2].passes == [2] * 4


def test_a_cpu_takes_sixteen_images_at_once() -> None:
    network, seen = watched()
    float_block_step(network, image_batch(count=20), 20, None)
    assert seen[len(seen) // 2].passes == [16, 4] * 4


def test_inputs_and_targets_are_those_of_the_float_network(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = open_float(tiny_vit(depth=3)), image_batch(count=3)
    given: list[Any] = []
    monkeypatch.setattr(cost, "float_step_seconds", lambda *some: given.extend(some) or [5.0, 1.0, 2.0])
    assert float_block_step(network, images, 2, 1) == statistics.median([5.0, 1.0, 2.0])
    unit, inputs, targets, micro_batch = given
    assert (unit, micro_batch) == (network.units[len(network.units) // 2], 1)
    data = {SINGLE: images[:2]}
    for each in network.units:
        entered = each.entered(data)
        data = each(entered)
        if each is unit:
            assert torch.equal(inputs[SINGLE], entered[SINGLE])
            assert torch.equal(targets[SINGLE], data[SINGLE])
            return
    raise AssertionError
