"""Block-wise reconstruction: a unit learns to reproduce the float unit's outputs (I&S-ViT eq. 12)."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import Data, Unit, quantizers, switch
from isvit_lightning.stages.compilation import callable_of
from isvit_lightning.stages.dropping import Dropper
from isvit_lightning.stages.halving import MicroBatch
from isvit_lightning.stages.inputs import Inputs, draw_batch, mixed
from isvit_lightning.stages.losses import Loss, NormalizedError, Surroundings, UnitLoss
from isvit_lightning.stages.passes import moved
from isvit_lightning.stages.schedule import Schedule
from isvit_lightning.stages.step import Fit, Step, Work
from isvit_lightning.stages.trainables import StraightThrough, Trainables, UnitTrainables, scale_groups
from isvit_lightning.stages.tuned import Share, TunedUnit
from isvit_lightning.stages.walk import Recalibration, UnitStage
from isvit_lightning.system.processes import require_equal, sum_over_processes

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tune(Step):
    """Tunes each unit of the network, in order, to give what the float unit gives.

    Args:
        name: what rows, logs and parts of a run call the step.
        weights: whether weights are quantized while they are tuned.
        activations: whether activations are.
        inputs: what a unit reads.
        loss: what is made small.
        trainables: which tensors are tuned.
        range_learning_rate: rate of Adam for the scales of the activations (straight-through gradient of the step
            size, LSQ, arXiv 1902.08153, without its gradient scale), relative to each scale; 0 keeps them fixed.
        recalibrate: when the ranges of activations are chosen anew: never, once before the step (stage), or before each
            unit on the inputs that the unit is tuned with.
        iterations: optimizer steps per unit; null takes those of the run.
        rounds: how many times as many steps are taken, such as 2 in a recipe that tunes once where others tune twice.

    Raises:
        IsvitError: a rate or a number is out of its range, or nothing is quantized.
    """

    name: str = "tune"
    weights: bool = True
    activations: bool = True
    inputs: Inputs = field(default_factory=Inputs)
    loss: Loss = field(default_factory=NormalizedError)
    trainables: Trainables = field(default_factory=StraightThrough)
    range_learning_rate: float = 1e-2
    recalibrate: Recalibration = "never"
    iterations: int | None = None
    rounds: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.range_learning_rate < math.inf:
            raise IsvitError(
                f"model.recipe has a range_learning_rate of {self.range_learning_rate}, expected 0 or a positive one: "
                "change it under steps or changes."
            )
        for name, value in (("iterations", self.iterations), ("rounds", self.rounds)):
            if value is not None and value < 1:
                raise IsvitError(
                    f"The step {self.name} has {value} {name}, expected 1 or more: change them under "
                    "model.recipe.steps."
                )
        if not (self.weights or self.activations):
            raise IsvitError(
                f"The step {self.name} quantizes nothing, expected weights or activations: set one of them to true "
                "under model.recipe.steps."
            )

    @property
    @override
    def quantizes_weights(self) -> bool:
        return self.weights

    @property
    @override
    def chooses_ranges(self) -> bool:
        return self.activations

    @property
    @override
    def tunes(self) -> bool:
        return True

    @override
    def iterations_of(self, schedule: Schedule) -> int:
        return self.rounds * (self.iterations or schedule.iterations)

    @override
    def take(self, work: Work, fit: Fit) -> None:
        fit(TuningStage(self, work))


@dataclass(frozen=True)
class _Now:
    """The unit that is being tuned.

    Args:
        trained: what of it is tuned.
        tuned: its tensors.
        around: the unit and its inputs.
        run: the unit itself, or a compiled function around it.
        loss: what is made small.
        dropper: draws the elements that stay unquantized.
    """

    trained: UnitTrainables
    tuned: TunedUnit
    around: Surroundings
    run: Callable[[Data], Data]
    loss: UnitLoss
    dropper: Dropper


class TuningStage(UnitStage):
    """Adam with a cosine on each unit, a fresh optimizer per unit (method page, section 3.4).

    Args:
        choice: what is tuned on what, against what.
        work: networks, images and schedule.
    """

    tunes = True

    def __init__(self, choice: Tune, work: Work) -> None:
        self.choice = choice
        super().__init__(choice.name, work)
        self.recalibrate = choice.recalibrate
        self._seed, self._number = work.seed, work.number
        self._generator = torch.Generator()
        self._pieces: MicroBatch | None = None
        self._now: _Now | None = None

    @property
    @override
    def steps(self) -> int:
        return self.choice.iterations_of(self.schedule)

    @property
    @override
    def reads_quantized(self) -> bool:
        return self.choice.inputs.reads_quantized

    @property
    @override
    def shards_images(self) -> bool:
        """Where a unit changes what later units read; otherwise processes share the units."""
        return self.choice.weights or self.reads_quantized

    @override
    def visits(self, unit: Unit) -> bool:
        """Units with something that is quantized in this step; others would have a loss of exactly zero."""
        weights = self.choice.weights and self.choice.trainables.trains_weights
        roles = [quantizer.role for quantizer in quantizers(unit.module).values()]
        return any(weights if role.weight else self.choice.activations for role in roles)

    @override
    def setup(self, stage: str) -> None:
        """Switch on what is quantized."""
        switch(self.network, weights=self.choice.weights, activations=self.choice.activations)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam, whose parameters and state are replaced at each unit."""
        return torch.optim.Adam([torch.zeros((), requires_grad=True, device=self.device)], fused=True)

    @override
    def on_train_epoch_start(self) -> None:
        """Prepare the unit, and the optimizer for it."""
        super().on_train_epoch_start()
        choice, unit, compiles = self.choice, self.unit, self.schedule.compile
        trained, around = choice.trainables.of(unit.module, compiles), self.surroundings()
        self._now = _Now(
            trained,
            self._tuned(trained),
            around,
            callable_of(unit, compiles),
            choice.loss.prepare(around),
            Dropper(unit, self.inputs, choice.inputs.drop, self.device),
        )
        # Draws depend on seed, step and unit alone, so that neither resuming nor the order of work changes them.
        number = self.plan[self.current_epoch]
        self._generator.manual_seed((self._seed * 10 + self._number) * 10_000 + number)

    def _tuned(self, trained: UnitTrainables) -> TunedUnit:
        """The tensors of the current unit that are to be tuned, in the hands of the emptied optimizer."""
        schedule = self.schedule
        usual = 16 if self.device.type == "cpu" else schedule.batch_size
        share = Share(schedule.micro_batch, usual, self.device, self._rank, self._processes, self.shards_images)
        self._pieces = self._pieces or MicroBatch(share.size)
        optimizer: Any = self.optimizers()
        scales = scale_groups(self.unit.module, self.choice.range_learning_rate)
        return TunedUnit(trained, scales, optimizer.optimizer, share, self._pieces)

    @override
    def training_step(self, step: int) -> None:
        """One step of Adam on a random batch.

        Args:
            step: number of the step within the unit, from 0.
        """
        place, length = self._current.trained.phase(step, self.steps)
        if step and not place:
            self._begin_phase(step)
        now, optimizer = self._current, self.optimizers()
        tuned = now.tuned
        chosen = draw_batch(len(self.images), self.schedule.batch_size, self._generator)
        # Every process draws for all images of the batch, so that the number of processes changes no draw.
        from_float = self.choice.inputs.draw(len(chosen), self.inputs.shapes, self._generator)
        now.dropper.draw(len(chosen), self._generator)
        if now.loss.is_due(step, self.steps):
            with tuned.held:
                now.loss.refresh()

        def loss_of(part: torch.Tensor) -> torch.Tensor:
            rows = chosen[part] // self._processes
            inputs = self.inputs[rows]
            if from_float is not None:
                shares = {name: share[part] for name, share in from_float.items()}
                inputs = mixed(inputs, self.float_inputs[rows], shares)
            with now.dropper.kept(part):
                outputs = now.run(moved(inputs, self.device))
            return now.loss(outputs, moved(self.targets[rows], self.device), rows)

        tuned.differentiate(chosen, loss_of, self.manual_backward, f"{self.name} {self.unit.name}")
        if self._processes > 1:
            sum_over_processes(tuned.gradients)
        self.last_loss = tuned.last_loss
        tuned.finish_gradients(step / self.steps)
        if step == 0:
            self.first_loss = self.last_loss
        tuned.offer(self.last_loss, place, length)
        tuned.step(0.5 * (1 + math.cos(math.pi * place / length)), optimizer.step)  # type: ignore[union-attr]
        if step == self.steps - 1 and not tuned.finite(self.last_loss):
            self._roll_back(tuned)

    @override
    def on_train_epoch_end(self) -> None:
        """Close the unit: its weights are final for this step."""
        super().on_train_epoch_end()
        now = self._current
        now.tuned.close()
        now.trained.finish(now.around)
        now.trained.harden()
        now.loss.close()
        # It holds the caches of this unit, which those of the next one would come on top of.
        self._now = None
        if self._processes > 1:
            require_equal(self.unit.module, self.unit.name)

    def _begin_phase(self, step: int) -> None:
        """Let what is tuned change, and give the optimizer what it is now."""
        now = self._current
        now.tuned.close()
        now.trained.advance(step, self.steps, now.around)
        self._now = replace(now, tuned=self._tuned(now.trained))

    @property
    def _current(self) -> "_Now":
        if self._now is None:
            raise RuntimeError("no unit is being tuned")
        return self._now

    def _roll_back(self, tuned: TunedUnit) -> None:
        """Give the unit its best state back: tuning ended in NaN or infinity."""
        self.last_loss = tuned.roll_back()
        self.rolled_back.append(self.unit.name)
        _LOG.warning(
            "%s %s: the loss is no number, the unit is rolled back to its best state (loss %.4g); a lower learning "
            "rate under model.recipe.changes.%s may mend it",
            self.name,
            self.unit.name,
            float(self.last_loss),
            self.name,
        )
