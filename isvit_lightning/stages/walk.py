"""The base of every stage: one epoch is one unit, and each image passes each network once."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from typing_extensions import override

from isvit_lightning.networks import SINGLE, Data, Unit
from isvit_lightning.stages.losses import Suffix, Surroundings
from isvit_lightning.stages.passes import Held, Rows, moved, run_in_chunks
from isvit_lightning.stages.stage import Stage
from isvit_lightning.stages.step import Work
from isvit_lightning.storage.caches import Caches
from isvit_lightning.system.processes import gather_rows

Recalibration = Literal["never", "stage", "unit"]


class UnitStage(Stage):
    """Walks the units of a network inside one ``fit`` of ``epochs`` epochs.

    The outputs of the finished units are carried forward: entering a unit runs each network's part once over all
    images, and nothing is run from the image again, unless caches are to be recomputed. With several processes, a stage
    that ``shards_images`` carries image ``i`` in the process ``i % processes`` alone.

    Args:
        name: name of the step.
        work: networks, images and schedule.

    Attributes:
        visited: indices of the units that the stage has work to do in.
        plan: those of them that are still to be done, here.
        recalibrate: when ranges of activations that exist are chosen anew.
        rolled_back: names of the units whose loss ended in NaN or infinity and that were given their best state back.
        first_loss: loss of the first step of the current unit.
    """

    tunes = False
    """Whether units are tuned: they are parts of a run then, and have losses."""
    replicated = False
    """Whether each process does all units on all images, alike."""

    def __init__(self, name: str, work: Work) -> None:
        super().__init__(name, work.quantized.model)
        self.automatic_optimization = False
        self.first_loss = torch.tensor(torch.nan)
        self.rolled_back: list[str] = []
        self.quantized = work.quantized
        self.target = work.target
        self.schedule = work.schedule
        self.images = work.images
        self.range_images = work.range_images
        self.visited = [index for index, unit in enumerate(work.quantized.units) if self.visits(unit)]
        self.plan = list(self.visited)
        self.recalibrate: Recalibration = "never"
        self.inputs = self.targets = self.float_inputs = self._no_rows()
        self._walked = 0
        self._rank, self._processes = 0, 1

    @abstractmethod
    def visits(self, unit: Unit) -> bool:
        """Whether the stage has work to do in ``unit``."""

    @abstractmethod
    def training_step(self, step: int) -> None:
        """One step on the current unit."""

    @property
    @override
    def steps(self) -> int:
        """Steps per unit."""
        return self.schedule.iterations

    @property
    @override
    def epochs(self) -> int:
        """The number of units that the stage visits."""
        return len(self.plan)

    @property
    def unit(self) -> Unit:
        """The quantized unit of the current epoch."""
        return self.quantized.units[self.plan[self.current_epoch]]

    @property
    @override
    def unit_name(self) -> str:
        return self.unit.name

    @property
    @override
    def units_before(self) -> int:
        return self._number_of(self.plan[self.current_epoch]) - 1

    @property
    def position(self) -> str:
        """Where the stage stands, as ``5/14``; units of an earlier run or another process count."""
        return f"{self._number_of(self.plan[self.current_epoch])}/{len(self.visited)}"

    @property
    @override
    def log_name(self) -> str:
        # A logger empties the folder it is given, and that of an interrupted run is worth keeping.
        return f"{self.name}_from_unit_{self._number_of(self.plan[0])}" if self.ranges_chosen else self.name

    def _number_of(self, index: int) -> int:
        """Number among the visited units, from 1, of the unit with this index."""
        return self.visited.index(index) + 1

    @property
    def reads_quantized(self) -> bool:
        """Whether units read the activations of the quantized network so far."""
        return False

    @property
    @override
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

    def sample(self, count: int) -> Data:
        """What the current unit reads of the first ``count`` images, ``(count, …)``, whichever process carries them."""
        carried = self.inputs[: -(-count // self._processes)]
        if self._processes > 1:
            carried = {name: gather_rows(rows, count) for name, rows in carried.items()}
        return moved(carried, self.device)

    def surroundings(self) -> Surroundings:
        """The unit of this epoch, and what is around it."""
        unit, index = self.unit, self.plan[self.current_epoch]
        is_chain = self.quantized.run is None and not any(one.named or one.source for one in self.quantized.units)

        @torch.no_grad()
        def outputs(rows: torch.Tensor) -> Data:
            return unit(moved(self.inputs[rows], self.device))

        return Surroundings(
            unit,
            self.targets,
            self.device,
            outputs,
            Suffix(self.target.units[index + 1 :]) if is_chain else None,
            self._rank,
            self._processes,
            self.schedule.caches.chunk,
        )

    def _step_into(self, index: int) -> None:
        """Move the carried activations from unit ``index - 1`` to ``index``."""
        target, unit, caches = self.target.units[index], self.quantized.units[index], self.schedule.caches
        images = self._images()
        if unit.source is not None and target.source is not None:
            self._enter_from_images(target, target.source, unit.source, images)
            return
        # What the last unit read from the float network is let go first, so that no more than three caches ever exist.
        self.float_inputs = self.targets if index else images
        if self.reads_quantized:
            outputs: Rows = images
            if index:
                outputs = run_in_chunks(self.quantized.units[index - 1], self.inputs, self.device, caches)
            self.inputs = _enter(unit, outputs, self.device, caches)
            del outputs
        else:
            self.inputs = self.float_inputs
        self.float_inputs = self.targets = _enter(target, self.float_inputs, self.device, caches)
        if not self.reads_quantized:
            self.inputs = self.float_inputs
        self.targets = run_in_chunks(target, self.float_inputs, self.device, caches)

    def _enter_from_images(self, target: Unit, in_float: Any, in_quantized: Any, images: Held) -> None:
        """Enter a unit that does not read the one before it; ``in_…`` compute its inputs in either network."""
        caches = self.schedule.caches
        self.inputs = self.float_inputs = self.targets = self._no_rows()
        self.inputs = self.float_inputs = run_in_chunks(self._from_images(in_float), images, self.device, caches)
        if self.reads_quantized:
            self.inputs = run_in_chunks(self._from_images(in_quantized), images, self.device, caches)
        self.targets = run_in_chunks(target, self.float_inputs, self.device, caches)

    def _from_images(self, source: Callable[[Any, torch.Tensor], Data]) -> Callable[[Data], Data]:
        inputs_of = partial(source, self.target.model)
        return lambda images: inputs_of(images[SINGLE])

    def _images(self) -> Held:
        """Those of this process."""
        return Held({SINGLE: self.images[self._rank :: self._processes]})

    def _no_rows(self) -> Rows:
        return Held({SINGLE: self.images[:0]})

    def teardown(self, stage: str) -> None:
        """Let the caches go: a trainer and its module hold each other, so that both outlive the fit for a while."""
        self.inputs = self.targets = self.float_inputs = self._no_rows()


def _enter(unit: Unit, previous: Rows, device: torch.device, caches: Caches) -> Rows:
    """Inputs of ``unit``; the same rows where nothing lies between the units."""
    probe = moved(previous[:1], device)
    with torch.no_grad():
        if unit.entered(probe)[SINGLE] is probe[SINGLE]:
            return previous
    return run_in_chunks(unit.entered, previous, device, caches)
