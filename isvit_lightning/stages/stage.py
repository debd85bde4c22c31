"""What a trainer and its callbacks need to know of any stage."""

from lightning.pytorch import LightningModule
from torch import nn


class Stage(LightningModule):
    """A step that is trained by a trainer of its own.

    Args:
        name: name of the step.
        network: what is trained.

    Attributes:
        ranges_chosen: whether the ranges that the stage begins with are there already.
    """

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.ranges_chosen = False

    @property
    def epochs(self) -> int:
        """``max_epochs`` of the trainer."""
        return 1

    @property
    def shards_images(self) -> bool:
        """Whether the processes of a run share the images; otherwise each works alone."""
        return True

    @property
    def log_name(self) -> str:
        """Folder of its logs."""
        return self.name
