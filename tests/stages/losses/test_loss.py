"""What a loss is told: the float network behind its unit, what the unit gives, and when to look again."""

import weakref
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import SINGLE, Data, Unit
from isvit_lightning.stages import (
    AdaRound,
    CurvatureError,
    FeatureError,
    Inputs,
    Loss,
    NormalizedError,
    Schedule,
    SquaredGradient,
    TuningStage,
)
from isvit_lightning.stages.losses import Surroundings, UnitLoss
from tests.helpers import image_batch, tiny_swin, tiny_vit
from tests.stages.fitting import STAGE3, EachStep, run, work_on

SEEN: list[dict[str, Any]] = []


class Watched(UnitLoss):
    """The error of the outputs; it looks again before every second step."""

    def __init__(self, around: Surroundings) -> None:
        super().__init__(lambda outputs, wanted, places: (outputs[SINGLE] - wanted[SINGLE]).square().mean())
        self.around = around
        self.looks = [around.outputs(torch.arange(3))[SINGLE]]

    def is_due(self, step: int, steps: int) -> bool:
        return step > 0 and step % 2 == 0

    def refresh(self) -> None:
        self.looks.append(self.around.outputs(torch.arange(3))[SINGLE])


@dataclass(frozen=True)
class Watching(Loss):
    def prepare(self, around: Surroundings) -> UnitLoss:
        loss = Watched(around)
        SEEN.append({"around": around, "loss": loss, "targets": around.targets[torch.arange(3)][SINGLE]})
        return loss


def watched(model: torch.nn.Module, images: torch.Tensor, look: Any = None, steps: int = 1, **changes: Any) -> Any:
    SEEN.clear()
    choice = replace(STAGE3, loss=Watching(), **changes)
    return run(TuningStage(choice, work_on(model, images, Schedule(steps, 4))), *([EachStep(look)] if look else []))


@pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
def test_the_suffix_is_the_float_network_behind_each_unit(build: Any, size: int) -> None:
    model, images = build(), image_batch(size, 5)
    stage = watched(model, images)
    with torch.no_grad():
        logits = model(images[:3])
        features = model.forward_head(model.forward_features(images[:3]), pre_logits=True)
    assert len(SEEN) == len(stage.quantized.units)
    for seen in SEEN:
        suffix = seen["around"].required_suffix("Watching")
        torch.testing.assert_close(suffix.logits(seen["targets"]), logits)
        if suffix.units:
            torch.testing.assert_close(suffix.features(seen["targets"]), features)
    assert [len(seen["around"].suffix.units) for seen in SEEN] == list(reversed(range(len(SEEN))))


def test_outputs_are_those_of_the_unit_on_what_it_reads() -> None:
    expected: list[torch.Tensor] = []

    def look(stage: Any, step: int) -> None:
        if step == 0:
            with torch.no_grad():
                expected.append(stage.unit(stage.inputs[torch.arange(3)])[SINGLE])

    watched(tiny_vit(), image_batch(16, 5), look)
    assert len(expected) == len(SEEN)
    assert all(torch.equal(seen["loss"].looks[0], wanted) for seen, wanted in zip(SEEN, expected, strict=True))


def test_a_loss_looks_again_with_the_weights_as_they_are_tuned_by_now() -> None:
    ada = AdaRound(learning_rate=1.0, weight=0.0)
    watched(tiny_vit(), image_batch(16, 5), steps=5, trainables=ada, inputs=Inputs("quantized"))
    for seen in SEEN:
        first, second, third = seen["loss"].looks
        # The roundings move, although the layer's own weights do not until the unit is closed.
        assert not torch.equal(first, second)
        assert not torch.equal(second, third)
        assert not third.requires_grad


class AtUnits(Callback):
    """Notes, before each unit is entered, how many losses of units before it are left."""

    def __init__(self) -> None:
        self.losses: list[weakref.ref[UnitLoss]] = []
        self.left: list[int] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.left.append(sum(loss() is not None for loss in self.losses))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(weakref.ref(pl_module._now.loss))


LOSSES = [NormalizedError(), CurvatureError(), CurvatureError(SquaredGradient()), FeatureError()]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_loss_and_the_caches_that_it_holds_are_let_go_before_the_next_unit(loss: Loss) -> None:
    units = AtUnits()
    run(TuningStage(replace(STAGE3, loss=loss), work_on(tiny_vit(), image_batch(16, 5), Schedule(1, 4))), units)
    assert units.left == [0, 0, 0, 0]


def test_a_network_that_is_more_than_its_units_is_refused() -> None:
    def outputs(rows: torch.Tensor) -> Data:
        return {}

    around = Surroundings(Unit("neck", torch.nn.Identity(), lambda x: x), None, torch.device("cpu"), outputs)  # type: ignore[arg-type]
    with pytest.raises(IsvitError, match="The loss Some reads the outputs of the network behind neck, expected one"):
        around.required_suffix("Some")
