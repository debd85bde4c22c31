"""The model section of a classifier's configuration, and how classifiers are measured."""

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from isvit_lightning.data import CalibrationDataModule
from isvit_lightning.data.loading import UNLABELED
from isvit_lightning.errors import IsvitError
from isvit_lightning.evaluation import Evaluator
from isvit_lightning.export.artifact import QuantizedNetwork, load
from isvit_lightning.run.task import ModelSection, bare
from isvit_lightning.sources.source import NetworkSource
from isvit_lightning.storage.files import write_atomically
from isvit_lightning.system.processes import gather_shares, rank, world_size


class Classifier(ModelSection):
    """An image classifier and how it is to be quantized.

    Args:
        network: where the float network comes from.
        **options: recipe, widths, and how long and on how much a unit is tuned.
    """

    def __init__(self, network: NetworkSource, **options: Any) -> None:
        super().__init__(network, Classification(), **options)


class Classification:
    """Networks that name the class of an image, measured by accuracy and by their distance to the float network.

    Attributes:
        float_logits: what the float network gave for the batches of the evaluation; None before it was measured.
    """

    columns: tuple[tuple[str, str], ...] = (
        ("top1", "top-1 %"),
        ("top5", "top-5 %"),
        ("agreement", "agreement %"),
        ("kl", "KL"),
    )
    packages: tuple[str, ...] = ()
    compares_with_float = True

    def __init__(self) -> None:
        self.float_logits: list[torch.Tensor] | None = None

    def load(self, directory: Path) -> QuantizedNetwork:
        """The quantized network of a run directory.

        Raises:
            IsvitError: the directory holds none.
        """
        return load(directory)

    def measure(
        self, network: nn.Module, data: CalibrationDataModule, trainer: Trainer, is_float: bool = False
    ) -> dict[str, float]:
        """Top-1 and top-5 in per cent where the images have labels; agreement in per cent and KL to the float network.

        Args:
            network: float or quantized.
            data: the configured data.
            trainer: runs the evaluation.
            is_float: whether it is the float network, which later ones are compared with.

        Raises:
            IsvitError: network and images have different classes.
        """
        classes = _classes(network)
        if data.num_classes not in (None, 0, classes):
            raise IsvitError(
                f"The evaluation images have {data.num_classes} classes but the network has {classes}, expected "
                "as many: set data.class_map to a file with the folder of each class in order, or change "
                "data.evaluation."
            )
        evaluator = Evaluator(network, classes, None if is_float else self.float_logits)
        metrics = trainer.test(evaluator, datamodule=data, verbose=False)[0]
        if is_float:
            self.float_logits = evaluator.logits
        return rounded(metrics)

    def distance(
        self, network: nn.Module, images: torch.Tensor, batch_size: int, make_trainer: Callable[[], Trainer]
    ) -> Callable[[nn.Module], dict[str, float]]:
        """What measures agreement in per cent and KL of networks to the float one on images without labels.

        Args:
            network: the float network.
            images: preprocessed ``(n, 3, height, width)``, the same in every process; at least one for each.
            batch_size: images at once.
            make_trainer: builds a trainer that runs an evaluation.
        """
        share = images[rank() :: world_size()]
        labels = torch.full((len(share),), UNLABELED)
        batches = DataLoader(TensorDataset(share, labels), batch_size)
        classes = _classes(network)
        reference = Evaluator(network, classes)
        make_trainer().test(reference, batches, verbose=False)
        wanted = reference.logits

        def measure(other: nn.Module) -> dict[str, float]:
            return rounded(make_trainer().test(Evaluator(other, classes, wanted), batches, verbose=False)[0])

        return measure

    def timed_part(self, network: nn.Module) -> nn.Module:
        """All of ``network``."""
        return network

    def write_onnx(
        self,
        network: QuantizedNetwork,
        path: Path,
        data: CalibrationDataModule,
        images: torch.Tensor | None,
        weights_only: bool = False,
    ) -> Path:
        """Write the network from images to logits; the file tells the names of its classes where the data do."""
        from isvit_lightning.export.onnx import export_onnx, export_onnx_int4  # noqa: PLC0415 - only a verb needs it

        write = export_onnx_int4 if weights_only else export_onnx
        return write(network, path, images=images, classes=data.class_names or None, packed_hash=network.sha256).path

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


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Shares of a trainer's test in per cent, and the divergence."""
    shares = {name: round(100 * float(metrics[name]), 3) for name in ("top1", "top5", "agreement") if name in metrics}
    return shares | {name: round(float(metrics[name]), 6) for name in ("kl",) if name in metrics}


def _classes(network: nn.Module) -> int:
    return int(cast("Any", bare(network)).num_classes)
