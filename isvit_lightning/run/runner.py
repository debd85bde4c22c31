"""A run: what `fit` does, given a configured model and data."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from isvit_lightning.callbacks import let_go
from isvit_lightning.data import CalibrationDataModule
from isvit_lightning.data.selection import CalibrationList
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.networks import OpenedNetwork, open_float
from isvit_lightning.recipe import Recipe, read_recipe
from isvit_lightning.run.audit import audit, calibrated_on, count_values
from isvit_lightning.run.claim import claimed
from isvit_lightning.run.fitting import UnitFitter
from isvit_lightning.run.inspection import require_space
from isvit_lightning.run.made import made_with
from isvit_lightning.run.pipeline import Calibration, calibrate_network, require_equal_outputs
from isvit_lightning.run.results import Results, console, float_size
from isvit_lightning.run.resumption import begin, fingerprint
from isvit_lightning.run.rows import StepRows
from isvit_lightning.run.task import ModelSection
from isvit_lightning.sources.source import LoadedNetwork
from isvit_lightning.storage.files import write_atomically, write_json
from isvit_lightning.storage.parts import Parts
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
        loggers: loggers that the configuration names; None keeps the run directory's own.
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
    loggers: list[Any] | None = None
    alone: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def fit(self, evaluate: bool, baselines: Sequence[str], resume: bool = False, overwrite: bool = False) -> Results:
        """Calibrate, write the run directory and print the table.

        Args:
            evaluate: measure float, the steps that tune, and the result (and the baselines).
            baselines: names of recipes that are measured too.
            resume: go on with an interrupted run of the directory, if there is one.
            overwrite: set a run of another configuration in the directory aside.
        """
        compared = {name: read_recipe(name) for name in baselines} if evaluate else {}
        with claimed(self.directory, ("checkpoints", "logs")):
            return self._fit(evaluate, compared, resume, overwrite)

    def _fit(self, evaluate: bool, compared: Mapping[str, Recipe], resume: bool, overwrite: bool) -> Results:
        loaded = self.load_network()
        self.require_openable(loaded.model, (self.model.recipe, *compared.values()))
        calibration, listing = self.calibration(loaded)
        require_equal_outputs(calibration, compared.values())
        run = fingerprint(self.model, loaded, listing, self.seed, self.machine)
        beginning = begin(self.directory, run, resume, overwrite)
        results = self._results(len(calibration.images), evaluate)
        if beginning.resumes:
            results.restore()
        if beginning.finished:
            return _tell_finished(results, self.directory)
        self._write_inputs(loaded, listing, run)
        if evaluate:
            self._measure_row(results, "float", loaded.model, is_float=True)
        results.size_bytes["float"] = float_size(loaded.model)
        for name, recipe in compared.items():
            if name not in results.metrics:
                _LOG.info("%s: calibrating to compare with", name)
                network, seconds = self.calibrated(replace(calibration, recipe=recipe, seconds={}))
                results.baseline_seconds[name] = seconds
                self._measure_row(results, name, network)
                del network  # before the next one is built: memory holds two networks as it is
        opened = self._calibrate(calibration, results, beginning.parts, evaluate)
        quantized = opened.model
        record = made_with(self.model, self.seed) | {"weights": loaded.fingerprint["sha256"]}
        artifact = QuantizedNetwork(quantized, loaded.architecture, loaded.preprocessing, record)
        path = self.directory / "quantized.safetensors"
        if rank() == 0:
            artifact.save(path)
            results.size_bytes["packed"] = path.stat().st_size
        results.audit = audit(opened, calibration, self.calibrated_on(loaded, listing))
        if evaluate:
            self._measure_row(results, "quantized", artifact)
        results.write()
        if rank() == 0:
            beginning.parts.clear()
        if evaluate:
            console().print(results.table())
        _LOG.info("wrote %s", self.directory)
        return results

    def load_network(self) -> LoadedNetwork:
        """The float network, whose preprocessing the data are told."""
        _LOG.info("loading %s", self.model.source.title)
        loaded: LoadedNetwork = self.model.source.build()
        self.data.attach(loaded.preprocessing)
        return loaded

    def calibration(self, loaded: LoadedNetwork) -> tuple[Calibration, CalibrationList]:
        """What the steps of the configured recipe need, and the list of the calibration images.

        Args:
            loaded: the float network.

        Raises:
            IsvitError: images are missing, or there is no room for the caches.
        """
        caches, recipe = self.model.schedule.caches, self.model.recipe
        require_space(caches, open_float(loaded.model, recipe.reconstruct), self.data)
        _LOG.info("reading %d calibration images", self.data.calibration_images)
        images = self.data.calibration_tensor(caches.empty_images)
        self.require_one_each("calibration", len(images))
        calibration = Calibration(loaded.model, images, self.model.bits, recipe, self.model.schedule, self.seed)
        return calibration, self.data.calibration_list()

    def calibrated_on(self, loaded: LoadedNetwork, listing: CalibrationList, held_out: int = 0) -> dict[str, Any]:
        """The calibration images, as results tell them.

        Args:
            loaded: the float network.
            listing: what :meth:`calibration` gives.
            held_out: how many of them are not calibrated on.
        """
        # Data modules may place images on a larger canvas than the smallest one that the network takes.
        return calibrated_on(listing, replace(loaded.preprocessing, input_size=self.data.input_size), held_out)

    def require_openable(self, model: nn.Module, recipes: Sequence[Recipe]) -> None:
        """Tell what cannot be opened before anything long begins.

        Raises:
            IsvitError: a recipe does not fit the network.
        """
        for recipe in recipes:
            recipe.open(recipe.transformed(model), self.model.bits)

    def calibrated(self, calibration: Calibration) -> tuple[nn.Module, float]:
        """The network of a recipe that is only compared with, and its seconds; nothing of it is kept."""
        started = time.perf_counter()
        fitter = UnitFitter(self.make_trainer, self.alone)
        return calibrate_network(calibration, fitter).model, time.perf_counter() - started

    def measure(self, network: nn.Module, is_float: bool = False) -> dict[str, float]:
        """Metrics of ``network`` on the evaluation images."""
        self.require_one_each("evaluation", self.data.num_evaluation_images)
        metrics = self.model.task.measure(network, self.data, self.evaluating_trainer(), is_float)
        # The data remember their last trainer, a trainer and its module hold each other: with them a whole network.
        self.data.trainer = None
        let_go()
        return metrics

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

    def _measure_row(self, results: Results, row: str, network: nn.Module, is_float: bool = False) -> None:
        """Measure ``network`` unless an earlier run did, and write it down; the float one may be needed to compare."""
        if row not in results.metrics or (is_float and self.model.task.compares_with_float):
            _LOG.info("%s: measuring on %d images", row, results.images["evaluation"])
            results.n_values[row] = count_values(network)
            results.metrics[row] = self.measure(network, is_float)
            results.write()

    def _results(self, calibration_images: int, evaluate: bool) -> Results:
        rows = [step for step in self.model.recipe.steps[:-1] if step.has_row]
        float_weights = {step.name: f"32/{self.model.bits.activation}" for step in rows if not step.quantizes_weights}
        return Results(
            self.directory / "results.json",
            self.model.source.title,
            self.model.recipe.name,
            self.model.bits,
            {"calibration": calibration_images, "evaluation": self.data.num_evaluation_images if evaluate else 0},
            self.seed,
            self.model.schedule.iterations,
            widths={"float": "32/32", **float_weights},
            evaluation=self.data.evaluation_list().sha256 if evaluate else "",
            columns=self.model.task.columns,
            packages=self.model.task.packages,
        )

    def _calibrate(self, calibration: Calibration, results: Results, parts: Parts, evaluate: bool) -> OpenedNetwork:
        fitter = UnitFitter(
            self.make_trainer, self.alone, self.directory, self.configured_callbacks, parts, self.loggers
        )
        rows = StepRows(calibration.recipe.steps, results, self._measure_row if evaluate else None)
        network = calibrate_network(calibration, fitter, rows, parts)
        # The files know more than this process did: units of other processes and of the run before an interruption.
        results.rolled_back = results.rolled_back or parts.rolled_back()
        spent = calibration.seconds
        results.seconds |= {"calibrate": fitter.range_seconds, **spent, "total": sum(spent.values())}
        return network

    def require_one_each(self, kind: str, count: int) -> None:
        """Refuse more processes than images: one without an image would leave the others waiting."""
        if 0 < count < world_size():
            option = "calibration_images" if kind == "calibration" else "evaluation_images"
            raise IsvitError(
                f"There are {count} {kind} images for {world_size()} processes, expected at least one each: raise "
                f"data.{option} or lower trainer.devices."
            )

    def evaluating_trainer(self) -> Trainer:
        """A trainer that measures or predicts."""
        return self.make_trainer(logger=False, callbacks=[KeepSigterm()])


def _tell_finished(results: Results, directory: Path) -> Results:
    """Nothing is left to do."""
    _LOG.info("%s is finished; nothing is left to resume", directory)
    if results.metrics:
        console().print(results.table())
    else:
        _LOG.info("it was not measured on these images: isvit test --ckpt_path %s does that", directory)
    return results
