"""The step that trains the whole network at once against the float network, without labels."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import (
    SINGLE,
    OpenedNetwork,
    calibrate_ranges,
    quantizers,
    switch,
)
from isvit_lightning.stages.inputs import Batches
from isvit_lightning.stages.losses import divergence, reconstruction_loss
from isvit_lightning.stages.rollback import BestState
from isvit_lightning.stages.schedule import Schedule
from isvit_lightning.stages.stage import Stage
from isvit_lightning.stages.step import Fit, Step, Work
from isvit_lightning.stages.trainables import Group, StraightThrough, scale_groups
from isvit_lightning.system.processes import rank, sum_over_processes, world_size

_LOG = logging.getLogger(__name__)
_CHUNK = 32
"""Images that pass at once while the divergence is measured."""


@dataclass(frozen=True)
class Finetune(Step):
    """Trains all weights, biases and scales at once to give the float network's logits and block outputs.

    The loss is the divergence of the probabilities from the float network's, plus the squared errors of the outputs of
    the units relative to their variance. Some calibration images can be held back: the divergence on them is measured
    now and then, and the best state of all, the one at the beginning included, is what the step ends with.

    Args:
        name: what rows, logs and parts of a run call the step.
        iterations: optimizer steps; null takes those of the run.
        batch_size: images per optimizer step, over all processes; null takes that of the run.
        trainables: rates of weights and biases.
        range_learning_rate: rate of Adam for the scales of the activations, relative to each; 0 keeps them fixed.
        unit_weight: weight of the mean error of the units' outputs beside the divergence.
        held_back: share of the calibration images that are only measured on; 0 ends with the last state.
        checks: how many times the held-back images are measured on.

    Raises:
        IsvitError: a number is out of its range.
    """

    name: str = "finetune"
    iterations: int | None = None
    batch_size: int | None = None
    trainables: StraightThrough = field(default_factory=lambda: StraightThrough(3e-3))
    range_learning_rate: float = 3e-3
    unit_weight: float = 1.0
    held_back: float = 0.25
    checks: int = 10

    def __post_init__(self) -> None:
        counts = [count for count in (self.iterations, self.batch_size, self.checks) if count is not None]
        if min(counts) < 1 or min(self.range_learning_rate, self.unit_weight) < 0 or not 0 <= self.held_back < 1:
            raise IsvitError(
                f"The step {self.name} has {self}, expected counts of 1 or more, rates and weights of 0 or more, and a "
                "share held_back below 1: change model.recipe.steps."
            )

    @override
    def iterations_of(self, schedule: Schedule) -> int:
        return self.iterations or schedule.iterations

    @override
    def batch_size_of(self, schedule: Schedule) -> int:
        return self.batch_size or schedule.batch_size

    @property
    @override
    def quantizes_weights(self) -> bool:
        return True

    @override
    def take(self, work: Work, fit: Fit) -> None:
        model = work.quantized.model
        switch(model, weights=True, activations=True)
        _choose_missing_ranges(work)
        fit(FinetuneStage(self, work))
        model.requires_grad_(False).eval()


class FinetuneStage(Stage):
    """Adam with a cosine on the whole network, by Lightning's own loop and, with several processes, its own DDP.

    Args:
        choice: rates, loss and images that are held back.
        work: networks and images.

    Raises:
        IsvitError: the units are not all of the network, or too few images are left to train on.
    """

    def __init__(self, choice: Finetune, work: Work) -> None:
        super().__init__(choice.name, work.quantized.model)
        self.choice = choice
        self.quantized, self.target = work.quantized, work.target
        self._steps = choice.iterations_of(work.schedule)
        self._batch = choice.batch_size_of(work.schedule)
        self._seed = (work.seed * 10 + work.number) * 10_000
        count = math.ceil(choice.held_back * len(work.images))
        self.images, self.held_back = work.images[: len(work.images) - count], work.images[len(work.images) - count :]
        if work.quantized.run is not None:
            raise IsvitError(
                f"The step {choice.name} trains a network by its logits, expected one whose units are all of it: take "
                "it out of model.recipe.steps."
            )
        if len(self.images) < world_size():
            raise IsvitError(
                f"The step {choice.name} holds back {count} of {len(work.images)} images, expected some to train on: "
                "lower held_back or raise data.calibration_images."
            )
        self.groups = self._groups()
        self.best: BestState | None = None
        self.divergences: list[float] = []

    @property
    @override
    def steps(self) -> int:
        return self._steps

    @override
    def setup(self, stage: str) -> None:
        """Let everything that is trained have a gradient, before the strategy looks for what has."""
        for tensor in self._tuned():
            tensor.requires_grad_(True)

    @override
    def configure_optimizers(self) -> Any:
        """Adam, and a cosine over the steps."""
        groups = [{"params": group.tensors, "lr": group.rate} for group in self.groups]
        optimizer = torch.optim.Adam(groups, fused=True)
        cosine = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / self._steps)))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def train_dataloader(self) -> "Batches":
        """Images of each step, those of this process."""
        return Batches(self.images, self._batch, self._steps, self._seed, rank(), world_size())

    @override
    def on_fit_start(self) -> None:
        """Bring the float network to the same device, and remember the state at the beginning."""
        self.target.model.to(self.device)
        self.best = BestState(self._tuned())
        self._check()

    @override
    def on_train_epoch_start(self) -> None:
        # Lightning switches the module to training mode; dropout and stochastic depth stay off.
        self.network.eval()

    @override
    def training_step(self, images: torch.Tensor, step: int) -> torch.Tensor:
        """Loss of one batch.

        Args:
            images: ``(batch, 3, height, width)``.
            step: number of the step, from 0.
        """
        with torch.no_grad():
            wanted = outputs_of(self.target, images)
        given = outputs_of(self.quantized, images)
        loss = divergence(wanted[-1], given[-1]).mean()
        if self.choice.unit_weight and len(given) > 1:
            errors = [_relative_error(output, target) for output, target in zip(given[:-1], wanted[:-1], strict=True)]
            loss = loss + self.choice.unit_weight * torch.stack(errors).mean()
        self.last_loss = loss.detach()
        return loss

    @override
    def on_after_backward(self) -> None:
        """Average the gradients of the scales over the processes: they are buffers, which DDP leaves alone."""
        for scale in self._scales():
            if world_size() > 1 and scale.grad is not None:
                sum_over_processes(scale.grad)
                scale.grad.div_(world_size())

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the scales above their floors, and measure now and then."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        with torch.no_grad():
            for group in self.groups:
                for tensor in group.tensors if group.floor is not None else ():
                    tensor.clamp_(min=group.floor)
        done = batch_idx + 1
        if done == self._steps or done % max(1, self._steps // self.choice.checks) == 0:
            self._check()

    @override
    def on_train_end(self) -> None:
        """Go back to the best state that was met."""
        if self.best is not None and len(self.held_back):
            self.best.restore()
            self.best.let_go()
        for tensor in self._tuned():
            tensor.requires_grad_(False)
            tensor.grad = None
        if self.divergences:
            last, least = self.divergences[-1], min(self.divergences)
            _LOG.info(
                "%s: divergence on %d held-back images %.4g → %.4g, best %.4g",
                self.name,
                len(self.held_back),
                self.divergences[0],
                last,
                least,
            )

    @torch.no_grad()
    def _check(self) -> None:
        """Offer the present state by its divergence on the held-back images."""
        if not len(self.held_back) or self.best is None:
            return
        total = torch.zeros((), device=self.device)
        own = self.held_back[rank() :: world_size()]
        for start in range(0, len(own), _CHUNK):
            images = own[start : start + _CHUNK].to(self.device)
            wanted, given = outputs_of(self.target, images)[-1], outputs_of(self.quantized, images)[-1]
            total += divergence(wanted, given).sum()
        sum_over_processes(total)
        total /= len(self.held_back)
        self.divergences.append(float(total))
        self.best.offer(total)

    def _groups(self) -> list[Group]:
        groups = []
        for unit in self.quantized.units:
            groups += self.choice.trainables.of(unit.module, compiled=True).groups
        return [*groups, *scale_groups(self.network, self.choice.range_learning_rate)]

    def _tuned(self) -> list[torch.Tensor]:
        return [tensor for group in self.groups for tensor in group.tensors]

    def _scales(self) -> list[torch.Tensor]:
        return [tensor for tensor in self._tuned() if not isinstance(tensor, nn.Parameter)]


def outputs_of(network: OpenedNetwork, images: torch.Tensor) -> list[torch.Tensor]:
    """Output of each unit for ``images (batch, 3, height, width)``; the last one are the logits."""
    data, outputs = {SINGLE: images}, []
    for unit in network.units:
        data = unit(unit.entered(data))
        outputs.append(data[SINGLE])
    return outputs


def _relative_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared error relative to the variance of the target, a scalar."""
    return reconstruction_loss(output, target, target.var()) / output.shape[1]


def _choose_missing_ranges(work: Work) -> None:
    """Ranges of what has none yet."""
    model = work.quantized.model
    missing = [one for one in quantizers(model).values() if not one.calibrated]
    weights = any(one.role.weight for one in missing)
    activations = any(not one.role.weight for one in missing)
    sample = work.images[: work.range_images].to(next(model.parameters()).device)
    calibrate_ranges(model, lambda: work.quantized.walk(sample), weights, activations)
