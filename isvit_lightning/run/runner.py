"""What the verbs of the command line do, given a configured model and data."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from isvit_lightning.callbacks import (
    CalibrateQuantizers,
    RequireCalibrated,
    ReturnMemory,
    SaveUnits,
    UnitProgress,
    WatchQuantizers,
    let_go,
)
from isvit_lightning.classifier import run_directory
from isvit_lightning.data import CalibrationDataModule
from isvit_lightning.data.selection import CalibrationList
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.networks import open_float
from isvit_lightning.recipe.method import Method, repq, round_to_nearest
from isvit_lightning.run.config import require_same_model
from isvit_lightning.run.inspection import require_space
from isvit_lightning.run.results import Results, console, count_codes, float_size
from isvit_lightning.run.resumption import begin, fingerprint
from isvit_lightning.run.task import ModelSection
from isvit_lightning.sources.source import LoadedNetwork
from isvit_lightning.stages import Calibration, Schedule, UnitStage, calibrate_network, quantize_without_tuning
from isvit_lightning.storage.files import write_atomically, write_json
from isvit_lightning.storage.parts import Checkpoints
from isvit_lightning.system.processes import rank, world_size
from isvit_lightning.system.termination import KeepSigterm

_LOG = logging.getLogger(__name__)


@dataclass
class Runner:
    """One run of the program.

    Args:
        model: the model section of the configuration.
        data: the configured data.
        seed: seed of the run.
        directory: run directory.
        config: the configuration as YAML.
        make_trainer: builds a trainer from the configuration and overriding arguments.
        configured_callbacks: callbacks that the configuration names.
        alone: arguments of a trainer that computes in this process only, for stages that share units.
        machine: device, number of processes and precision, which decide the last bits of a result.
    """

    model: ModelSection
    data: CalibrationDataModule
    seed: int
    directory: Path
    config: str
    make_trainer: Callable[..., Trainer]
    configured_callbacks: list[Any] = field(default_factory=list)
    alone: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def fit(self, evaluate: bool, baselines: bool, resume: bool = False) -> Results:
        """Calibrate, write the run directory and print the table.

        Args:
            evaluate: measure float, stage 1 and the result (and the baselines).
            baselines: measure round-to-nearest and RepQ-style networks too.
            resume: go on with an interrupted run of the directory, if there is one.
        """
        loaded = self._load_network()
        require_space(self.model.caches, open_float(loaded.model, self.model.method.reconstruct), self.data)
        images = self.data.calibration_tensor(self.model.caches.empty_images)
        listing = self.data.calibration_list()
        self._require_one_each("calibration", len(images))
        run = fingerprint(self.model, loaded, listing, self.seed, self.machine)
        beginning = begin(self.directory, run, resume)
        results = self._results(len(images), evaluate)
        if beginning.resumes:
            results.restore()
        if beginning.finished:
            return self._tell_finished(results)
        self._write_inputs(loaded, listing, run)
        calibration = Calibration(loaded.model, images, self.model.bits, self.model.method, self._schedule())
        if evaluate:
            self._measure_once(results, "float", loaded.model)
            if baselines:
                self._baselines(results, calibration)
        results.size_bytes["float"] = float_size(loaded.model)

        def after_stage1(network: nn.Module) -> None:
            self._measure_once(results, "stage1", network)

        measures_stage1 = evaluate and "stage1" not in results.metrics
        quantized = self._calibrate(
            calibration, results, after_stage1 if measures_stage1 else None, beginning.checkpoints
        )
        artifact = QuantizedNetwork(
            quantized, loaded.architecture, loaded.preprocessing, self.model.bits, self.model.method
        )
        path = self.directory / "quantized.safetensors"
        if rank() == 0:
            artifact.save(path)
            results.size_bytes["packed"] = path.stat().st_size
        results.n_codes = count_codes(quantized)
        if evaluate:
            self._measure_once(results, "quantized", artifact)
        results.write()
        if rank() == 0:
            beginning.checkpoints.clear()
        if evaluate:
            console().print(results.table())
        _LOG.info("wrote %s", self.directory)
        return results

    def _write_inputs(self, loaded: LoadedNetwork, listing: CalibrationList, run: dict[str, Any]) -> None:
        """Write what the run starts from, in the first process."""
        if rank() == 0:
            write_atomically(self.directory / "config.yaml", self.config.encode())
            write_json(
                self.directory / "calibration.json",
                {
                    "sha256": listing.sha256,
                    "images": list(listing.names),
                    "skipped": list(listing.skipped),
                    "network": loaded.fingerprint,
                    "run": run,
                },
            )

    def _tell_finished(self, results: Results) -> Results:
        """Nothing is left to do."""
        _LOG.info("%s is finished; nothing is left to resume", self.directory)
        if results.metrics:
            console().print(results.table())
        return results

    def _measure_once(self, results: Results, row: str, network: nn.Module) -> None:
        """Measure ``network`` unless an earlier run did, and write it down."""
        if row not in results.metrics:
            results.metrics[row] = self._measure(network)
            results.write()

    def test(self, checkpoint: str | None) -> dict[str, float]:
        """Measure the run of ``checkpoint``, or the float network.

        Args:
            checkpoint: run directory; None measures the float network.
        """
        network = self._network(checkpoint)
        metrics = self._measure(network)
        shown = [
            f"{title.removesuffix(' %')} {metrics[name]:.2f} %"
            for name, title in self.model.task.columns
            if name in metrics
        ]
        console().print(f"{'  '.join(shown)}  on {self.data.num_evaluation_images} images")
        return metrics

    def predict(self, checkpoint: str | None) -> Path:
        """Write what the network finds on the evaluation images.

        Args:
            checkpoint: run directory; None predicts with the float network.
        """
        network = self._network(checkpoint)
        self._require_one_each("prediction", self.data.num_prediction_images)
        make_float = None if checkpoint is None else lambda: self.model.source.build().model
        folder = run_directory(checkpoint) if checkpoint else self.directory
        path = self.model.task.predict(network, make_float, self.data, self._evaluating_trainer(), folder)
        _LOG.info("wrote %s", path)
        return path

    def _load_network(self) -> LoadedNetwork:
        loaded: LoadedNetwork = self.model.source.build()
        self.data.attach(loaded.preprocessing)
        return loaded

    def _network(self, checkpoint: str | None) -> nn.Module:
        if checkpoint is None:
            return self._load_network().model
        directory = run_directory(checkpoint)
        require_same_model(directory, self.model, self.config)
        network = self.model.task.load(directory)
        if network.preprocessing is None:
            raise IsvitError(f"{checkpoint} does not tell its preprocessing; expected a run of `isvit fit`.")
        self.data.attach(network.preprocessing)
        return network

    def _schedule(self) -> Schedule:
        return Schedule(
            self.model.iterations,
            self.model.batch_size,
            self.seed,
            self.model.micro_batch,
            self.model.caches,
            self.model.compile_units,
        )

    def _results(self, calibration_images: int, evaluate: bool) -> Results:
        return Results(
            self.directory / "results.json",
            self.model.source.title,
            self.model.method.name,
            self.model.bits,
            {"calibration": calibration_images, "evaluation": self.data.num_evaluation_images if evaluate else 0},
            self.seed,
            self.model.iterations,
            columns=self.model.task.columns,
            packages=self.model.task.packages,
        )

    def _baselines(self, results: Results, calibration: Calibration) -> None:
        for name, method in (("round_to_nearest", round_to_nearest()), ("repq", repq())):
            if name in results.metrics:
                continue
            started = time.perf_counter()
            network = quantize_without_tuning(self._with_method(calibration, method))
            results.baseline_seconds[name] = time.perf_counter() - started
            self._measure_once(results, name, network.model)
            del network  # before the next one is built: memory holds two networks as it is

    @staticmethod
    def _with_method(calibration: Calibration, method: Method) -> Calibration:
        return Calibration(calibration.model, calibration.images, calibration.bits, method, calibration.schedule)

    def _calibrate(
        self,
        calibration: Calibration,
        results: Results,
        after_stage1: Callable[[nn.Module], None] | None,
        checkpoints: Checkpoints,
    ) -> nn.Module:
        ranges = CalibrateQuantizers(self.model.method.range_images)
        durations: dict[str, float] = {}

        def fit(stage: UnitStage) -> None:
            started = time.perf_counter()
            name = stage.part
            # A logger empties the folder it is given, and that of an interrupted run is worth keeping.
            log = f"{name}_from_unit_{stage.first}" if stage.ranges_chosen else name
            trainer = self.make_trainer(
                max_epochs=stage.epochs,
                enable_checkpointing=True,
                logger=[
                    CSVLogger(self.directory, "logs", log),
                    TensorBoardLogger(self.directory, "logs", log),
                ],
                callbacks=[
                    ranges,
                    ReturnMemory(),
                    UnitProgress(),
                    WatchQuantizers(),
                    KeepSigterm(),
                    *self.configured_callbacks,
                    SaveUnits(checkpoints),
                ],
                **({} if stage.shards_images else self.alone),
            )
            trainer.fit(stage)
            durations[name] = time.perf_counter() - started + checkpoints.seconds.pop(name, 0.0)
            if name in ("stage1", "stage3"):
                results.seconds[name] = durations[name]
                results.write()

        network = calibrate_network(calibration, fit, after_stage1, checkpoints)
        # The files know more than this process did: units of other processes and of the run before an interruption.
        results.rolled_back = results.rolled_back or checkpoints.rolled_back()
        waited = checkpoints.seconds
        # Stages that were only loaded: as an earlier run wrote down, or else what their parts took.
        spent = {name: results.seconds.get(name, waited.get(name, 0.0)) for name in ("stage1", "stage2", "stage3")}
        spent |= {name: seconds + waited.get(name, 0.0) for name, seconds in durations.items()}
        results.seconds |= {
            "calibrate": ranges.seconds,
            "stage1": spent["stage1"],
            "stage3": spent["stage3"],
            "total": sum(spent.values()),
        }
        return network.model

    def _measure(self, network: nn.Module) -> dict[str, float]:
        self._require_one_each("evaluation", self.data.num_evaluation_images)
        metrics = self.model.task.measure(network, self.data, self._evaluating_trainer())
        # The data remember their last trainer, a trainer and its module hold each other: with them a whole network.
        self.data.trainer = None
        let_go()
        return metrics

    def _require_one_each(self, kind: str, count: int) -> None:
        """Refuse more processes than images: one without an image would leave the others waiting."""
        if 0 < count < world_size():
            option = "calibration_images" if kind == "calibration" else "evaluation_images"
            raise IsvitError(
                f"There are {count} {kind} images for {world_size()} processes, expected at least one each: raise "
                f"data.{option} or lower trainer.devices."
            )

    def _evaluating_trainer(self) -> Trainer:
        return self.make_trainer(logger=False, callbacks=[RequireCalibrated(), KeepSigterm()])
