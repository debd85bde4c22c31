"""Several processes for one run: Lightning starts them, and every one runs the whole program."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.stages.resume import synchronize

_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


class UnitStrategy(DDPStrategy):
    """Lightning's DDP without its wrapper around the network.

    The wrapper settles at its construction which parameters have gradients, but each unit has others: the processes
    would drift apart. Here the states are broadcast once, and a stage sums the gradients of its unit itself.
    """

    def configure_ddp(self) -> None:
        """Give every process the state of the first one; a stage that trains by itself gets Lightning's own DDP."""
        if self.lightning_module is None:
            return
        synchronize(self.lightning_module)
        if self.lightning_module.automatic_optimization:
            super().configure_ddp()


@contextmanager
def started(trainer: Trainer) -> Iterator[None]:
    """Start the other processes of a run with Lightning's launcher, and end them if this one fails.

    Nothing happens where ``trainer`` computes on one device.

    Args:
        trainer: a trainer of the run's configuration.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, UnitStrategy) or strategy.launcher is None:
        yield
        return
    strategy.launcher.launch(strategy.setup_environment, trainer=trainer)
    try:
        yield
    except BaseException:
        # Not SIGTERM: a process that waits for the others does not see it.
        strategy.launcher.kill(signal.SIGKILL)
        raise


def unit_trainer(make: Callable[..., Trainer], **options: Any) -> Trainer:
    """A trainer of the user's options; with several devices, one that shares units and images among them.

    Args:
        make: builds Lightning's.
        **options: what goes before the user's.

    Raises:
        IsvitError: the options do not fit together, or do not fit this machine or the work.
    """
    try:
        trainer = make(**options)
    except (MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError) as error:
        raise IsvitError(
            f"Lightning's trainer cannot be built ({first_line(error)}), expected options that fit together and this "
            "machine: change trainer."
        ) from error
    require_precision(trainer)
    require_supported(trainer)
    if not isinstance(trainer.strategy, DDPStrategy):
        return trainer
    return make(**{**options, "strategy": UnitStrategy() if trainer.world_size > 1 else "auto"})


def alone(trainer: Trainer) -> dict[str, Any]:
    """Arguments of a trainer that computes in this process only, on the device that ``trainer`` gives it."""
    device = trainer.strategy.root_device
    return {"devices": 1 if device.index is None else [device.index], "num_nodes": 1, "strategy": "auto"}


def require_precision(trainer: Trainer) -> None:
    """Refuse precisions other than float32, and autocast around it: codes and weights need float32.

    Raises:
        IsvitError: ``trainer.precision`` is another one.
    """
    if trainer.precision not in _PRECISIONS:
        raise IsvitError(
            f"trainer.precision is {trainer.precision}, expected {', '.join(_PRECISIONS)}, which keep weights and "
            "codes in float32: change it there."
        )


def require_supported(trainer: Trainer) -> None:
    """Refuse to share a run among processes in a way that splits the network itself.

    Raises:
        IsvitError: the strategy is neither ``auto`` nor ``ddp``.
    """
    if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
        raise IsvitError(
            f"trainer.strategy is {type(trainer.strategy).__name__}, expected auto or ddp, which share units and "
            "images among the processes: change it there."
        )
