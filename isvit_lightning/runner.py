"""What the verbs of the command line do, given a configured model and data."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from isvit_lightning.artifact import QuantizedNetwork, load
from isvit_lightning.callbacks import (
    CalibrateQuantizers,
    RequireCalibrated,
    ReturnMemory,
    UnitProgress,
    WatchQuantizers,
    let_go,
)
from isvit_lightning.classifier import Classifier, Evaluator, per_cent, run_directory
from isvit_lightning.data import CalibrationDataModule
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.files import write_atomically, write_json
from isvit_lightning.method import Method, repq, round_to_nearest
from isvit_lightning.networks.source import LoadedNetwork
from isvit_lightning.results import Results, console, count_codes, float_size
from isvit_lightning.stages import Calibration, Schedule, UnitStage, calibrate_network, quantize_without_tuning

_LOG = logging.getLogger(__name__)


@dataclass
class Runner:
    """One run of the program.

    Args:
        model: the configured classifier.
        data: the configured data.
        seed: seed of the run.
        directory: run directory.
        config: the configuration as YAML.
        make_trainer: builds a trainer from the configuration and overriding arguments.
        configured_callbacks: callbacks that the configuration names.
    """

    model: Classifier
    data: CalibrationDataModule
    seed: int
    directory: Path
    config: str
    make_trainer: Callable[..., Trainer]
    configured_callbacks: list[Any] = field(default_factory=list)

    def fit(self, evaluate: bool, baselines: bool) -> Results:
        """Calibrate, write the run directory and print the table.

        Args:
            evaluate: measure float, stage 1 and the result (and the baselines).
            baselines: measure round-to-nearest and RepQ-style networks too.
        """
        loaded = self._load_network()
        images = self.data.calibration_tensor()
        listing = self.data.calibration_list()
        write_atomically(self.directory / "config.yaml", self.config.encode())
        write_json(
            self.directory / "calibration.json",
            {
                "sha256": listing.sha256,
                "images": list(listing.names),
                "skipped": list(listing.skipped),
                "network": loaded.fingerprint,
            },
        )
        results = self._results(len(images), evaluate)
        calibration = Calibration(loaded.model, images, self.model.bits, self.model.method, self._schedule())
        if evaluate:
            results.metrics["float"] = self._measure(loaded.model)
            if baselines:
                self._baselines(results, calibration)
        results.size_bytes["float"] = float_size(loaded.model)

        def after_stage1(network: nn.Module) -> None:
            results.metrics["stage1"] = self._measure(network)
            results.write()

        quantized = self._calibrate(calibration, results, after_stage1 if evaluate else None)
        artifact = QuantizedNetwork(
            quantized, loaded.architecture, loaded.preprocessing, self.model.bits, self.model.method
        )
        path = self.directory / "quantized.safetensors"
        artifact.save(path)
        results.size_bytes["packed"] = path.stat().st_size
        results.n_codes = count_codes(quantized)
        if evaluate:
            results.metrics["quantized"] = self._measure(artifact)
        results.write()
        if evaluate:
            console().print(results.table())
        _LOG.info("wrote %s", self.directory)
        return results

    def test(self, checkpoint: str | None) -> dict[str, float]:
        """Measure the run of ``checkpoint``, or the float network.

        Args:
            checkpoint: run directory; None measures the float network.
        """
        network = self._network(checkpoint)
        metrics = self._measure(network)
        console().print(
            f"top-1 {metrics['top1']:.2f} %  top-5 {metrics['top5']:.2f} %  on {self.data.num_evaluation_images} images"
        )
        return metrics

    def predict(self, checkpoint: str | None) -> Path:
        """Write ``predictions.csv`` with file, class and probability of each image.

        Args:
            checkpoint: run directory; None predicts with the float network.
        """
        network = self._network(checkpoint)
        trainer = self.make_trainer(logger=False, callbacks=[RequireCalibrated()])
        batches = trainer.predict(Evaluator(network, self._classes(network)), datamodule=self.data)
        probabilities = torch.cat([batch for batch in batches or [] if isinstance(batch, torch.Tensor)])
        top = probabilities.max(dim=1)
        lines = ["image,class,probability"] + [
            f"{name},{int(label)},{float(value):.6f}"
            for name, label, value in zip(self.data.predict_names(), top.indices, top.values, strict=True)
        ]
        path = (run_directory(checkpoint) if checkpoint else self.directory) / "predictions.csv"
        write_atomically(path, ("\n".join(lines) + "\n").encode())
        _LOG.info("wrote %s", path)
        return path

    def _load_network(self) -> LoadedNetwork:
        loaded = self.model.source.build()
        self.data.attach(loaded.preprocessing)
        return loaded

    def _network(self, checkpoint: str | None) -> nn.Module:
        if checkpoint is None:
            return self._load_network().model
        directory = run_directory(checkpoint)
        self._require_same_model(directory)
        network = load(directory)
        if network.preprocessing is None:
            raise IsvitError(f"{checkpoint} does not tell its preprocessing; expected a run of `isvit fit`.")
        self.data.attach(network.preprocessing)
        return network

    def _require_same_model(self, directory: Path) -> None:
        """Refuse options that contradict the run: the file holds what it was calibrated with, not what they say."""
        path = directory / "config.yaml"
        if not path.exists():
            return
        stored, given = yaml.safe_load(path.read_text())["model"], yaml.safe_load(self.config)["model"]
        different = [f"model.{key}" for key in ("network", "bits", "method") if stored.get(key) != given.get(key)]
        if different:
            raise IsvitError(
                f"{directory} was calibrated with another {' and '.join(different)}, expected the same: leave "
                f"{'it' if len(different) == 1 else 'them'} out, or calibrate again with isvit fit."
            )

    def _schedule(self) -> Schedule:
        return Schedule(self.model.iterations, self.model.batch_size, self.seed, self.model.micro_batch)

    def _results(self, calibration_images: int, evaluate: bool) -> Results:
        return Results(
            self.directory / "results.json",
            self.model.source.title,
            self.model.method.name,
            self.model.bits,
            {"calibration": calibration_images, "evaluation": self.data.num_evaluation_images if evaluate else 0},
            self.seed,
            self.model.iterations,
        )

    def _baselines(self, results: Results, calibration: Calibration) -> None:
        for name, method in (("round_to_nearest", round_to_nearest()), ("repq", repq())):
            started = time.perf_counter()
            network = quantize_without_tuning(self._with_method(calibration, method))
            results.baseline_seconds[name] = time.perf_counter() - started
            results.metrics[name] = self._measure(network.model)
            del network  # before the next one is built: memory holds two networks as it is

    @staticmethod
    def _with_method(calibration: Calibration, method: Method) -> Calibration:
        return Calibration(calibration.model, calibration.images, calibration.bits, method, calibration.schedule)

    def _calibrate(
        self, calibration: Calibration, results: Results, after_stage1: Callable[[nn.Module], None] | None
    ) -> nn.Module:
        ranges = CalibrateQuantizers(self.model.method.range_images)
        durations: dict[str, float] = {}

        def fit(stage: UnitStage) -> None:
            started = time.perf_counter()
            name = stage.title.replace(" ", "")
            trainer = self.make_trainer(
                max_epochs=stage.epochs,
                logger=[
                    CSVLogger(self.directory, "logs", name),
                    TensorBoardLogger(self.directory, "logs", name),
                ],
                callbacks=[ranges, ReturnMemory(), UnitProgress(), WatchQuantizers(), *self.configured_callbacks],
            )
            trainer.fit(stage)
            durations[name] = time.perf_counter() - started
            if stage.rolled_back:
                results.rolled_back[name] = stage.rolled_back

        network = calibrate_network(calibration, fit, after_stage1)
        results.seconds |= {
            "calibrate": ranges.seconds,
            "stage1": durations.get("stage1", 0.0),
            "stage3": durations.get("stage3", 0.0),
            "total": sum(durations.values()),
        }
        return network.model

    def _measure(self, network: nn.Module) -> dict[str, float]:
        classes = self._classes(network)
        if self.data.num_classes not in (None, classes):
            raise IsvitError(
                f"The evaluation images have {self.data.num_classes} classes but the network has {classes}, expected "
                "as many: set data.class_map to a file with the folder of each class in order, or change "
                "data.evaluation."
            )
        trainer = self.make_trainer(logger=False, callbacks=[RequireCalibrated()])
        metrics = per_cent(trainer.test(Evaluator(network, classes), datamodule=self.data, verbose=False)[0])
        # The data remember their last trainer, a trainer and its module hold each other: with them a whole network.
        del trainer
        self.data.trainer = None
        let_go()
        return metrics

    def _classes(self, network: nn.Module) -> int:
        inner = network.model if isinstance(network, QuantizedNetwork) else network
        return int(cast("Any", inner).num_classes)
