"""What the program needs to know of a kind of network: how it is configured, measured and shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from isvit_lightning.export import IntegerNetwork
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.recipe import Bits, Recipe
from isvit_lightning.stages import Schedule

_BITS = Bits()

FinishedNetwork = QuantizedNetwork | IntegerNetwork
"""The network of a finished run in either form."""


class Task(Protocol):
    """How networks of one kind are measured."""

    columns: tuple[tuple[str, str], ...]
    """Names of the metrics, each with its title in the table; the first two are the most important."""
    packages: tuple[str, ...]
    """Distributions whose versions results tell, beside those of every run."""
    compares_with_float: bool
    """Whether a network is also measured by its distance to the float network."""

    def load(self, directory: Path) -> QuantizedNetwork:
        """The quantized network of a run directory."""

    def measure(self, network: nn.Module, data: Any, trainer: Trainer, is_float: bool = False) -> dict[str, float]:
        """Metrics of ``network`` on the evaluation images.

        Args:
            network: float or quantized.
            data: the configured data.
            trainer: runs the evaluation.
            is_float: whether it is the float network, which later ones are compared with.
        """

    def distance(
        self, network: nn.Module, images: Tensor, batch_size: int, make_trainer: Callable[[], Trainer]
    ) -> Callable[[nn.Module], dict[str, float]] | None:
        """What measures networks by their distance to the float one on given images; None where nothing does.

        Args:
            network: the float network.
            images: preprocessed ``(n, 3, height, width)``, the same in every process; at least one for each.
            batch_size: images at once.
            make_trainer: builds a trainer that runs an evaluation.
        """

    def timed_part(self, network: nn.Module) -> nn.Module:
        """What of ``network``, float or quantized, maps a batch of images to tensors, as benchmarks time it."""

    def write_onnx(
        self, network: QuantizedNetwork, path: Path, data: Any, images: Tensor | None, weights_only: bool = False
    ) -> Path:
        """Write what other engines can compute of ``network`` as an ONNX graph, check it and run it.

        Args:
            network: calibrated.
            path: file to write.
            data: the configured data.
            images: calibration images ``(n, 3, height, width)`` that tell what lookups flip; None for none.
            weights_only: weights of 4 bits, activations in float.

        Returns:
            The file.
        """

    def predict(
        self, network: nn.Module, make_float: Callable[[], nn.Module] | None, data: Any, trainer: Trainer, folder: Path
    ) -> Path:
        """Write what ``network`` finds on the evaluation images, and return the file or folder.

        Args:
            network: float or quantized.
            make_float: builds the float network; None where ``network`` is it.
            data: the configured data.
            trainer: runs the prediction.
            folder: where to write.
        """


class ModelSection(LightningModule):
    """The model section of a configuration.

    Args:
        source: where the float network comes from; it has a ``title`` and a method ``build``.
        task: how networks of its kind are measured.
        recipe: what is quantized how, and which steps are taken.
        bits: widths of the codes.
        **schedule: how long and on how much a unit is tuned.
    """

    def __init__(self, source: Any, task: Task, recipe: Recipe, bits: Bits = _BITS, **schedule: Any) -> None:
        super().__init__()
        self.source, self.task = source, task
        self.recipe, self.bits = recipe, bits
        self.schedule = Schedule(**schedule)


def bare(network: nn.Module) -> nn.Module:
    """The network inside a finished one."""
    return network.model if isinstance(network, FinishedNetwork) else network
