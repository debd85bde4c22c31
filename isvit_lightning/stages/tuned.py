"""One unit while it is tuned: its tensors, gradients, micro-batches and best state."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.stages.gradients import FlatGradients
from isvit_lightning.stages.halving import MicroBatch
from isvit_lightning.stages.held import HeldWeights
from isvit_lightning.stages.rollback import CHECKS, BestState
from isvit_lightning.stages.trainables import Group, UnitTrainables


@dataclass(frozen=True)
class Share:
    """What of a batch this process carries, and how it passes a unit.

    Args:
        micro_batch: images that pass at once, where that was asked for; None for the usual number.
        usual: the usual number.
        device: where the unit computes.
        rank: number of this process.
        processes: how many there are; one, where they share units instead of images.
        halves: whether a single process forms the two groups that two processes would carry.
    """

    micro_batch: int | None
    usual: int
    device: torch.device
    rank: int = 0
    processes: int = 1
    halves: bool = False

    @property
    def size(self) -> int:
        """Images that pass at once."""
        return self.micro_batch or self.usual

    def groups(self, chosen: torch.Tensor) -> list[torch.Tensor]:
        """Places in ``chosen`` of the images that this process carries, in groups whose gradients are added up.

        One process forms the two groups that two processes would carry, so that the order of summation, and with it
        every bit of the result, is the same; except on an accelerator that takes the whole batch at once.
        """
        if self.processes > 1:
            return [torch.nonzero(chosen % self.processes == self.rank).flatten()]
        at_once = self.size >= len(chosen) and self.device.type != "cpu"
        if at_once or not self.halves:
            return [torch.arange(len(chosen))]
        halves = [torch.nonzero(chosen % 2 == half).flatten() for half in (0, 1)]
        return [half for half in halves if len(half)]

    def micro_batches(self, members: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
        """``members`` in parts of about equal size; none above a size that was asked for or that fits.

        Args:
            members: places in a batch.
            size: images that pass at once; smaller than :attr:`size` where memory ran out.
        """
        # The usual size is no bound: a small part more for a few images would cost time and save no memory to speak of.
        bound = self.micro_batch is not None or size < self.size
        number = math.ceil(len(members) / size) if bound else round(len(members) / size)
        return members.chunk(max(1, number)) if len(members) else ()


class TunedUnit:
    """The tensors of a unit in the hands of an optimizer, which is emptied for them.

    Args:
        trained: what of the unit is tuned.
        scales: numbers of its grids that are tuned too.
        optimizer: takes the steps.
        share: what of a batch this process carries.
        pieces: how many images pass at once; it remembers where memory ran out.

    Attributes:
        last_loss: loss of the last step, over the images of this process until its gradients were summed.
    """

    def __init__(
        self,
        trained: UnitTrainables,
        scales: list[Group],
        optimizer: torch.optim.Optimizer,
        share: Share,
        pieces: MicroBatch,
    ) -> None:
        self._trained, self._optimizer, self._share, self._pieces = trained, optimizer, share, pieces
        self._groups = [*trained.groups, *scales]
        self.tensors = [tensor for group in self._groups for tensor in group.tensors]
        if not self.tensors:
            raise IsvitError(
                "A step has nothing to tune in a unit, expected weights or scales that can be learned: change "
                "trainables or range_learning_rate under model.recipe.steps."
            )
        optimizer.state.clear()
        optimizer.param_groups.clear()
        for group in self._groups:
            for tensor in group.tensors:
                tensor.requires_grad_(True)
            optimizer.add_param_group({"params": group.tensors, "lr": group.rate})
        self._best = BestState(self.tensors)
        self._held = HeldWeights(trained.weights)
        self._gradients: list[FlatGradients] = []

    @property
    def gradients(self) -> torch.Tensor:
        """All gradients of this process, and its loss behind them, as one vector."""
        return self._gradients[0].vector

    @property
    def last_loss(self) -> torch.Tensor:
        """Loss of the last step."""
        return self._gradients[0].loss.clone()

    @property
    def held(self) -> HeldWeights:
        """A context in which the unit computes with its quantized weights as they are tuned by now."""
        return self._held

    def differentiate(
        self,
        chosen: torch.Tensor,
        loss_of: Callable[[torch.Tensor], torch.Tensor],
        backward: Callable[[torch.Tensor], None],
        where: str,
    ) -> None:
        """Gather gradients and loss of this process's part of a batch; where memory runs out, in smaller parts.

        Args:
            chosen: indices of the images of the batch.
            loss_of: mean loss of some of them, given by their places in ``chosen``.
            backward: differentiates a loss.
            where: step and unit, for messages.
        """
        with self._held:
            self._pieces.retry(lambda size: self._gather(chosen, loss_of, backward, size), where, self._share.device)

    def _gather(
        self,
        chosen: torch.Tensor,
        loss_of: Callable[[torch.Tensor], torch.Tensor],
        backward: Callable[[torch.Tensor], None],
        size: int,
    ) -> None:
        groups = self._share.groups(chosen)
        while len(self._gradients) < len(groups):
            self._gradients.append(FlatGradients([self._held.stand_in(tensor) for tensor in self.tensors]))
        for gradients, members in zip(self._gradients, groups, strict=False):
            gradients.collect()
            for part in self._share.micro_batches(members, size):
                loss = loss_of(part)
                loss = loss * (len(part) / len(chosen))
                backward(loss)
                gradients.loss.add_(loss.detach())
        first, *others = self._gradients[: len(groups)]
        for other in others:
            first.vector.add_(other.vector)
        first.attach()

    def finish_gradients(self, progress: float) -> None:
        """Take the gradients of quantized weights on to what is tuned, and add those of the penalty.

        Args:
            progress: share of the steps that are made, 0 to 1.
        """
        self._held.differentiate()
        penalty = self._trained.penalty(progress)
        if penalty is not None:
            penalty.backward()  # type: ignore[no-untyped-call]

    def offer(self, loss: torch.Tensor, step: int, steps: int) -> None:
        """Keep the present values now and then, if they are the best so far; before the optimizer's step."""
        if step % max(1, steps // CHECKS) == 0:
            self._best.offer(loss)

    def step(self, decay: float, take: Callable[[], object]) -> None:
        """One step of the optimizer.

        Args:
            decay: factor of every learning rate.
            take: takes it.
        """
        for rates, group in zip(self._optimizer.param_groups, self._groups, strict=True):
            rates["lr"] = group.rate * decay
        take()
        for group in self._groups:
            if group.floor is not None:
                for tensor in group.tensors:
                    tensor.detach().clamp_(min=group.floor)

    def finite(self, loss: torch.Tensor) -> bool:
        """Whether ``loss`` and all tensors are numbers."""
        return self._best.finite(loss)

    def roll_back(self) -> torch.Tensor:
        """Give the tensors their best values back; their loss."""
        self._best.restore()
        return self._best.loss

    def close(self) -> None:
        """Nothing of it is tuned any more."""
        for tensor in self.tensors:
            tensor.requires_grad_(False)
            tensor.grad = None
        self._gradients.clear()
        self._best.let_go()
        self._optimizer.state.clear()
