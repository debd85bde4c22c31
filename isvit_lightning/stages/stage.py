"""What a trainer and its callbacks need to know of any stage."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from isvit_lightning.errors import IsvitError


class Stage(LightningModule):
    """A step that is trained by a trainer of its own.

    Args:
        name: name of the step.
        network: what is trained.

    Attributes:
        ranges_chosen: whether the ranges that the stage begins with are there already.
        last_loss: loss of the last iteration so far, a scalar.
    """

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.ranges_chosen = False
        self.last_loss = torch.tensor(torch.nan)
        self._taken = 0

    @property
    def epochs(self) -> int:
        """``max_epochs`` of the trainer."""
        return 1

    @property
    def steps(self) -> int:
        """Iterations of an epoch."""
        return 1

    @property
    def unit_name(self) -> str:
        """What is tuned in the current epoch."""
        return "all"

    @property
    def units_before(self) -> int:
        """Units of the stage before the current one, those of an earlier run included."""
        return 0

    @property
    def shards_images(self) -> bool:
        """Whether the processes of a run share the images; otherwise each works alone."""
        return True

    @property
    def log_name(self) -> str:
        """Folder of its logs."""
        return self.name

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count what was done."""
        self._taken += 1

    def on_train_epoch_end(self) -> None:
        """Refuse a unit that was not tuned to its end, before it is kept as a finished one."""
        self._require_taken(self.current_epoch + 1)

    def require_finished(self) -> None:
        """Check after the fit that all was done, whatever callback or option of the trainer may have stopped it.

        Raises:
            IsvitError: iterations are missing.
        """
        self._require_taken(self.epochs)

    def _require_taken(self, epochs: int) -> None:
        wanted = epochs * self.steps
        if self._taken != wanted:
            raise IsvitError(
                f"The step {self.name} was stopped after {self._taken} of its {self.epochs * self.steps} iterations, "
                "expected all of them: take out what stops it under trainer, such as a callback, and go on with "
                "the same command and --resume true."
            )
