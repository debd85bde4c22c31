"""What is done with a finished run: it is measured, and predicts."""

import logging
from pathlib import Path
from typing import Any

from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.export import integer
from isvit_lightning.run.claim import claimed
from isvit_lightning.run.config import run_directory
from isvit_lightning.run.made import load_run, require_same_float, title_of
from isvit_lightning.run.results import console, line_of
from isvit_lightning.run.runner import Runner
from isvit_lightning.run.task import FinishedNetwork
from isvit_lightning.run.verbs import Runtime

_LOG = logging.getLogger(__name__)


def measure(runner: Runner, checkpoint: str | None, runtime: Runtime = "simulated") -> dict[str, float]:
    """Measure the run of ``checkpoint``, or the float network.

    Args:
        runner: model, data and trainers.
        checkpoint: run directory; None measures the float network.
        runtime: how a quantized network computes.
    """
    network = network_of(runner, checkpoint, runtime)
    console().print(title_of(network, checkpoint, runner.model), markup=False, highlight=False, soft_wrap=True)
    if checkpoint is not None and runner.model.task.compares_with_float:
        _measure_float(runner, str(checkpoint), network)
    metrics = runner.measure(network, is_float=checkpoint is None)
    console().print(f"{line_of(metrics, runner.model.task.columns)}  on {runner.data.num_evaluation_images} images")
    return metrics


def predict(runner: Runner, checkpoint: str | None, runtime: Runtime = "simulated") -> Path:
    """Write what the network finds on the evaluation images.

    Args:
        runner: model, data and trainers.
        checkpoint: run directory; None predicts with the float network.
        runtime: how a quantized network computes.
    """
    folder = run_directory(checkpoint) if checkpoint else runner.directory
    with claimed(folder):
        network = network_of(runner, checkpoint, runtime)
        _LOG.info("%s", title_of(network, checkpoint, runner.model))
        runner.require_one_each("prediction", runner.data.num_prediction_images)
        make_float = None if checkpoint is None else lambda: _float_of(runner, str(checkpoint), network)
        path = runner.model.task.predict(network, make_float, runner.data, runner.evaluating_trainer(), folder)
    _LOG.info("wrote %s", path)
    return path


def network_of(runner: Runner, checkpoint: str | None, runtime: Runtime = "simulated") -> Any:
    """The network of a run, or the float network, whose preprocessing the data are told.

    Args:
        runner: model, data and trainers.
        checkpoint: run directory; None loads the float network.
        runtime: how a quantized network computes.

    Raises:
        IsvitError: there is no such run, it was made otherwise than is configured, or the float network is to compute
            with integers.
    """
    if checkpoint is None:
        if runtime != "simulated":
            raise IsvitError(
                "The float network has no codes, expected a finished run for --runtime integer: name it with "
                "--ckpt_path, or leave --runtime out."
            )
        return runner.load_network().model
    network = load_run(checkpoint, runner.model, runner.seed, runner.config)
    if network.preprocessing is None:
        raise IsvitError(f"{checkpoint} does not tell its preprocessing; expected a run of `isvit fit`.")
    runner.data.attach(network.preprocessing)
    return network if runtime == "simulated" else integer(network, runner.machine.get("accelerator", "cpu"))


def _measure_float(runner: Runner, checkpoint: str, network: FinishedNetwork) -> None:
    """Measure the float network that a quantized one is compared with, where it can be had."""
    try:
        loaded = runner.load_network()
    except IsvitError as error:
        _LOG.info("The float network is not at hand, so that agreement and KL are left out: %s", error)
        return
    require_same_float(checkpoint, network, loaded)
    runner.measure(loaded.model, is_float=True)


def _float_of(runner: Runner, checkpoint: str, network: FinishedNetwork) -> nn.Module:
    """The float network that a quantized one was made from."""
    loaded = runner.load_network()
    require_same_float(checkpoint, network, loaded)
    return loaded.model
