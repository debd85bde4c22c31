"""What the program needs to know of a kind of network: how it is configured, measured and shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import Trainer
from torch import nn

from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.recipe.method import Bits, Method
from isvit_lightning.storage.caches import Caches


class Task(Protocol):
    """How networks of one kind are measured: classifiers by accuracy, detectors by average precision."""

    columns: tuple[tuple[str, str], ...]
    """Names of the metrics, each with its title in the table; the first two are the most important."""
    packages: tuple[str, ...]
    """Distributions whose versions results tell, beside those of every run."""

    def load(self, directory: Path) -> QuantizedNetwork:
        """The quantized network of a run directory."""

    def measure(self, network: nn.Module, data: Any, trainer: Trainer) -> dict[str, float]:
        """Metrics of ``network`` on the evaluation images, in per cent."""

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


class ModelSection(Protocol):
    """The model section of a configuration."""

    task: Task
    source: Any
    """Where the float network comes from: has a ``title`` and a method ``build`` that gives a LoadedNetwork."""
    bits: Bits
    method: Method
    iterations: int
    batch_size: int
    micro_batch: int | None
    compile_units: bool
    caches: Caches


def bare(network: nn.Module) -> nn.Module:
    """The network inside a finished one."""
    return network.model if isinstance(network, QuantizedNetwork) else network
