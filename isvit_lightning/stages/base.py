"""The base of every stage: one epoch is one unit, and each image passes each network once."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from lightning.pytorch import LightningModule

from isvit_lightning.networks import OpenedNetwork, Unit
from isvit_lightning.recipe.method import Tuning
from isvit_lightning.stages.passes import Rows, run_in_chunks
from isvit_lightning.storage.caches import Caches, computable
from isvit_lightning.system.processes import gather_rows

_IN_MEMORY = Caches()


@dataclass(frozen=True)
class Schedule:
    """How long and on how much a unit is tuned.

    Args:
        iterations: optimizer steps per unit and stage.
        batch_size: images per step.
        seed: seed of the draws of images, together with stage and unit.
        micro_batch: images that pass the unit at once. Smaller needs less memory and changes nothing but the order of
            summation. None takes 16 on a CPU, where that is also faster, and the whole batch elsewhere.
        caches: where inputs and targets are kept.
        compile_units: compile each unit before it is tuned.
    """

    iterations: int = 1000
    batch_size: int = 32
    seed: int = 0
    micro_batch: int | None = None
    caches: Caches = _IN_MEMORY
    compile_units: bool = False


class UnitStage(LightningModule):
    """Walks the units of a network inside one ``fit`` of ``epochs`` epochs.

    The outputs of the finished units are carried forward: entering a unit runs each network's part once over all
    images, and nothing is run from the image again, unless caches are to be recomputed. With several processes, a stage
    that ``shards_images`` carries image ``i`` in the process ``i % processes`` alone.

    Args:
        quantized: network that the stage changes.
        target: float network whose unit outputs are the targets.
        images: calibration images ``(n, 3, height, width)``.
        schedule: iterations, batch size and seed.

    Attributes:
        visited: indices of the units that the stage has work to do in.
        plan: those of them that are still to be done, here.
        ranges_chosen: whether the ranges that the stage begins with are there already.
        rolled_back: names of the units whose loss ended in NaN or infinity and that were given their best state back.
    """

    title = "stage"
    tuning: Tuning | None = None
    repeated = False
    """Whether each process does all units on all images instead."""

    def __init__(
        self, quantized: OpenedNetwork, target: OpenedNetwork, images: torch.Tensor, schedule: Schedule
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first_loss = torch.tensor(torch.nan)
        self.last_loss = torch.tensor(torch.nan)
        self.rolled_back: list[str] = []
        self.quantized = quantized
        self.target = target
        self.network = quantized.model
        self.schedule = schedule
        self.images = images
        self.visited = [index for index, unit in enumerate(quantized.units) if self.visits(unit)]
        self.plan = list(self.visited)
        self.ranges_chosen = False
        self.inputs: Rows = images
        self.targets: Rows = images
        self.float_inputs: Rows = images
        self._walked = 0
        self._rank, self._processes = 0, 1

    @abstractmethod
    def visits(self, unit: Unit) -> bool:
        """Whether the stage has work to do in ``unit``."""

    @abstractmethod
    def training_step(self, step: int) -> None:
        """One step on the current unit."""

    @property
    def part(self) -> str:
        """The title in one word, for files."""
        return self.title.replace(" ", "")

    @property
    def first(self) -> int:
        """Number of the first unit to be done, as in :attr:`place`."""
        return self.visited.index(self.plan[0]) + 1

    @property
    def steps(self) -> int:
        """Steps per unit."""
        return self.schedule.iterations

    @property
    def epochs(self) -> int:
        """``max_epochs`` of the trainer: the number of units that the stage visits."""
        return len(self.plan)

    @property
    def unit(self) -> Unit:
        """The quantized unit of the current epoch."""
        return self.quantized.units[self.plan[self.current_epoch]]

    @property
    def place(self) -> str:
        """Where the stage stands, as ``5/14``; units of an earlier run or another process count."""
        return f"{self.visited.index(self.plan[self.current_epoch]) + 1}/{len(self.visited)}"

    @property
    def reads_quantized(self) -> bool:
        """Whether units read the activations of the quantized network so far."""
        return False

    @property
    def shards_images(self) -> bool:
        """Whether each process carries its own images; otherwise each takes its own units."""
        return False

    def train_dataloader(self) -> Iterable[int]:
        """Step numbers; the images of a step are drawn in the step."""
        return range(self.steps)

    def on_fit_start(self) -> None:
        """Bring the float network to the same device, and take this process's share of the images."""
        if self.shards_images:
            self._rank, self._processes = self.trainer.global_rank, self.trainer.world_size
        self.target.model.to(self.device)
        self.network.eval()

    def on_train_epoch_start(self) -> None:
        """Prepare the unit of this epoch."""
        self.enter_unit()
        # Lightning switches the module to training mode; dropout and stochastic depth stay off in reconstruction.
        self.network.eval()

    def enter_unit(self) -> None:
        """Compute inputs and targets of the current unit; a second call in the same epoch does nothing."""
        index = self.plan[self.current_epoch]
        while self._walked <= index:
            self._step_into(self._walked)
            self._walked += 1

    def sample(self, count: int) -> torch.Tensor:
        """What the current unit reads of the first ``count`` images, ``(count, …)``, whichever process carries them."""
        mine = self.inputs[: -(-count // self._processes)]
        return gather_rows(mine, count) if self._processes > 1 else mine

    def _step_into(self, index: int) -> None:
        """Move the carried activations from unit ``index - 1`` to ``index``."""
        target, unit, caches = self.target.units[index], self.quantized.units[index], self.schedule.caches
        images = self.images[self._rank :: self._processes]
        if unit.source is not None and target.source is not None:
            in_float, in_quantized = (partial(each, self.target.model) for each in (target.source, unit.source))
            self._enter_from_images(target, in_float, in_quantized, images)
            return
        # What the last unit read from the float network is let go first, so that no more than three caches ever exist.
        self.float_inputs = self.targets if index else images
        if self.reads_quantized:
            outputs: Rows = images
            if index:
                outputs = run_in_chunks(self.quantized.units[index - 1].module, self.inputs, self.device, caches)
            self.inputs = _enter(unit, outputs, self.device, caches)
            del outputs
        else:
            self.inputs = self.float_inputs
        self.float_inputs = self.targets = _enter(target, self.float_inputs, self.device, caches)
        if not self.reads_quantized:
            self.inputs = self.float_inputs
        self.targets = run_in_chunks(target.module, self.float_inputs, self.device, caches)

    def _enter_from_images(
        self,
        target: Unit,
        in_float: Callable[[torch.Tensor], torch.Tensor],
        in_quantized: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
    ) -> None:
        """Enter a unit that does not read the one before it; ``in_…`` compute its inputs in either network."""
        caches = self.schedule.caches
        self.inputs = self.float_inputs = self.targets = images[:0]
        self.inputs = self.float_inputs = run_in_chunks(in_float, images, self.device, caches)
        if self.reads_quantized:
            self.inputs = run_in_chunks(in_quantized, images, self.device, caches)
        self.targets = run_in_chunks(target.module, self.float_inputs, self.device, caches)

    def teardown(self, stage: str) -> None:
        """Let the caches go: a trainer and its module hold each other, so that both outlive the fit for a while."""
        self.inputs = self.targets = self.float_inputs = self.images[:0]


def _enter(unit: Unit, previous: Rows, device: torch.device, caches: Caches) -> Rows:
    """Inputs of ``unit``; the same tensor where nothing lies between the units."""
    probe = computable(previous[:1]).to(device)
    with torch.no_grad():
        if unit.enter(probe) is probe:
            return previous
    return run_in_chunks(unit.enter, previous, device, caches)
