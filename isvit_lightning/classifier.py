"""The model section of a configuration, and the evaluation of a classifier."""

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from isvit_lightning.data import CalibrationDataModule
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork, load
from isvit_lightning.recipe.method import Bits, Method
from isvit_lightning.run.task import bare
from isvit_lightning.sources.source import NetworkSource
from isvit_lightning.storage.caches import Caches
from isvit_lightning.storage.files import write_atomically
from isvit_lightning.system.processes import gather_shares, rank

_BITS, _METHOD = Bits(), Method()


class Classifier(LightningModule):
    """An image classifier and how it is to be quantized.

    Args:
        network: where the float network comes from.
        bits: widths of the codes.
        method: what is quantized how, and what is tuned how.
        iterations: optimizer steps per unit and stage.
        batch_size: calibration images per step.
        micro_batch: images that pass a unit at once; smaller needs less memory and changes nothing but the order of
            summation. None takes 16 on a CPU and the whole batch elsewhere.
        compile: compile each unit with torch.compile before it is tuned, which can only pay with many
            iterations on large units. Needs a C++ compiler on a CPU, Triton on an accelerator.

    Raises:
        IsvitError: iterations or batch_size below 1.
    """

    def __init__(
        self,
        network: NetworkSource,
        bits: Bits = _BITS,
        method: Method = _METHOD,
        iterations: int = 1000,
        batch_size: int = 64,
        micro_batch: int | None = None,
        compile: bool = False,  # noqa: A002 - the option is called what torch calls it
    ) -> None:
        super().__init__()
        require_positive(iterations=iterations, batch_size=batch_size, micro_batch=micro_batch)
        self.task = Classification()
        self.caches = Caches()
        self.source = network
        self.bits = bits
        self.method = method
        self.iterations = iterations
        self.batch_size = batch_size
        self.micro_batch = micro_batch
        self.compile_units = compile


class Classification:
    """Networks that name the class of an image, measured by accuracy."""

    columns = (("top1", "top-1 %"), ("top5", "top-5 %"))
    packages: tuple[str, ...] = ()

    def load(self, directory: Path) -> QuantizedNetwork:
        """The quantized network of a run directory.

        Raises:
            IsvitError: the directory holds none.
        """
        return load(directory)

    def measure(self, network: nn.Module, data: CalibrationDataModule, trainer: Trainer) -> dict[str, float]:
        """Top-1 and top-5 in per cent.

        Raises:
            IsvitError: network and images have different classes.
        """
        classes = _classes(network)
        if data.num_classes not in (None, classes):
            raise IsvitError(
                f"The evaluation images have {data.num_classes} classes but the network has {classes}, expected "
                "as many: set data.class_map to a file with the folder of each class in order, or change "
                "data.evaluation."
            )
        return per_cent(trainer.test(Evaluator(network, classes), datamodule=data, verbose=False)[0])

    def predict(
        self,
        network: nn.Module,
        make_float: Callable[[], nn.Module] | None,
        data: CalibrationDataModule,
        trainer: Trainer,
        folder: Path,
    ) -> Path:
        """Write ``predictions.csv`` with file, class and probability of each image."""
        batches = trainer.predict(Evaluator(network, _classes(network)), datamodule=data)
        probabilities = torch.cat([batch for batch in batches or [] if isinstance(batch, torch.Tensor)])
        top = probabilities.max(dim=1)
        rows = [
            (name, int(label), f"{float(value):.6f}")
            for name, label, value in zip(data.predict_names(), top.indices, top.values, strict=True)
        ]
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([("image", "class", "probability"), *gather_shares(rows)])
        path = folder / "predictions.csv"
        if rank() == 0:
            # Names of files need not be text.
            write_atomically(path, table.getvalue().encode(errors="surrogateescape"))
        return path


class Evaluator(LightningModule):
    """Measures top-1 and top-5 of a network and lists its predictions.

    Args:
        network: maps images ``(batch, 3, height, width)`` to logits ``(batch, classes)``.
        classes: number of classes.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network = network
        # "micro" counts images; torchmetrics' default averages over classes.
        self.top1 = MulticlassAccuracy(classes, top_k=1, average="micro")
        self.top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro")

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        """Count one batch of ``images, labels``."""
        self._count(batch)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        """Count one batch of ``images, labels``."""
        self._count(batch)

    def predict_step(self, batch: Any, index: int) -> torch.Tensor:
        """Probabilities ``(batch, classes)``."""
        images = batch[0] if isinstance(batch, list | tuple) else batch
        logits: torch.Tensor = self.network(images)
        return logits.float().softmax(dim=1)

    def _count(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        images, labels = batch
        logits = self.network(images)
        self.top1(logits, labels)
        self.top5(logits, labels)
        self.log_dict({"top1": self.top1, "top5": self.top5}, on_step=False, on_epoch=True)


def per_cent(metrics: Mapping[str, float]) -> dict[str, float]:
    """Accuracies of a trainer's test as ``{"top1", "top5"}`` in per cent."""
    return {name: round(100 * float(metrics[name]), 3) for name in ("top1", "top5")}


def require_positive(**options: int | None) -> None:
    """Refuse options of the model section below 1; None stands for a default.

    Raises:
        IsvitError: one is.
    """
    for name, value in options.items():
        if value is not None and value < 1:
            raise IsvitError(f"model.{name} is {value}, expected at least 1: change it there.")


def _classes(network: nn.Module) -> int:
    return int(cast("Any", bare(network)).num_classes)


def run_directory(checkpoint: str) -> Path:
    """The run directory that ``--ckpt_path`` names, directly or by its ``quantized.safetensors``.

    Raises:
        IsvitError: there is no such run.
    """
    path = Path(checkpoint).expanduser()
    directory = path if path.is_dir() else path.parent
    if not path.exists() or not (directory / "quantized.safetensors").exists():
        raise IsvitError(
            f"{checkpoint} holds no finished run; expected a run directory with quantized.safetensors, or that file: "
            "check --ckpt_path."
        )
    return directory
