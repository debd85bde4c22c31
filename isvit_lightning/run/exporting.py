"""A finished run in the form of another engine."""

import logging
from pathlib import Path

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.openvino import export_openvino
from isvit_lightning.export.runs import export_hub, export_packed
from isvit_lightning.run.claim import claimed
from isvit_lightning.run.config import run_directory
from isvit_lightning.run.finished import network_of
from isvit_lightning.run.runner import Runner
from isvit_lightning.run.verbs import Form

_LOG = logging.getLogger(__name__)
_IMAGES = 32
"""Calibration images that tell what a lookup flips."""


def export(runner: Runner, checkpoint: str | None, form: Form, output: str | None) -> Path:
    """Write a finished run in the form of another engine.

    Args:
        runner: model, data and trainers.
        checkpoint: run directory.
        form: of the engine.
        output: folder; None takes ``export`` in the run directory.

    Returns:
        The file or folder that was written.

    Raises:
        IsvitError: there is no finished run, a package is missing, or the form cannot hold the network.
    """
    if checkpoint is None:
        raise IsvitError(
            "There is no run to export, expected a finished one: name its directory behind isvit export, or with "
            "--ckpt_path."
        )
    run = run_directory(checkpoint)
    with claimed(run):
        return _written(runner, run, form, Path(output) if output else run / "export")


def _written(runner: Runner, run: Path, form: Form, folder: Path) -> Path:
    if form == "packed":
        return export_packed(run, folder, runner.model.task.load)
    if form == "hub":
        return export_hub(run, folder / "hub", runner.model.task.load)
    network = network_of(runner, str(run))
    task, images = runner.model.task, seen_images(runner)
    if form == "onnx-int4":
        return task.write_onnx(network, folder / "model_int4.onnx", runner.data, images, weights_only=True)
    path = task.write_onnx(network, folder / "model.onnx", runner.data, images)
    if form == "onnx":
        return path
    converted, _ = export_openvino(path, folder / "openvino", name="model")
    _LOG.info("wrote %s", converted)
    return converted


def seen_images(runner: Runner) -> torch.Tensor | None:
    """Some of the calibration images, which tell what a lookup flips; None where they are not at hand.

    Args:
        runner: its data draw as many from then on.
    """
    runner.data.calibration_images = min(runner.data.calibration_images, _IMAGES)
    try:
        return runner.data.calibration_tensor()
    except IsvitError as error:
        _LOG.info("The calibration images are not at hand, so that exact forms are written uncompared: %s", error)
        return None
