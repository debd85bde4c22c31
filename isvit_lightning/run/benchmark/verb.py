"""The verb ``benchmark``: a finished run in every engine, by turns."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.export import integer
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.runtime.proof import prove
from isvit_lightning.run.benchmark.engines import forms_of
from isvit_lightning.run.benchmark.forms import Absent, Form, Subject, profiles_of
from isvit_lightning.run.benchmark.machine import machine_facts
from isvit_lightning.run.benchmark.options import Options
from isvit_lightning.run.benchmark.parity import Parity, measure_forms
from isvit_lightning.run.benchmark.report import Report
from isvit_lightning.run.benchmark.timing import time_forms
from isvit_lightning.run.claim import claimed
from isvit_lightning.run.config import run_directory
from isvit_lightning.run.exporting import seen_images
from isvit_lightning.run.finished import network_of
from isvit_lightning.run.made import require_same_float, title_of
from isvit_lightning.run.runner import Runner
from isvit_lightning.system.processes import world_size

_LOG = logging.getLogger(__name__)
_PACKED = "quantized.safetensors"
_PROVEN = 8
"""Calibration images that codes are compared on."""


def benchmark(runner: Runner, checkpoint: str | None, options: Options) -> Report:
    """Measure a finished run and write ``benchmark.json`` and ``benchmark.md`` into its directory.

    Args:
        runner: model, data and trainers.
        checkpoint: run directory.
        options: what is measured.

    Raises:
        IsvitError: there is no such run, it was made otherwise than is configured, or several processes are to
            measure it.
    """
    if checkpoint is None:
        raise IsvitError("No run is named, expected a finished one: isvit benchmark RUN, or --ckpt_path RUN.")
    if world_size() > 1:
        raise IsvitError(f"There are {world_size()} processes, expected one, alone: set trainer.devices to 1.")
    directory = run_directory(checkpoint)
    device = torch.device(runner.machine.get("accelerator", "cpu"))
    with claimed(directory), tempfile.TemporaryDirectory() as folder:
        facts = machine_facts(device)
        network = network_of(runner, checkpoint)
        # Graphs are traced with images of their own; exporters measure on these what lookups change.
        sees_images = set(options.engines) != {"pytorch"} or options.profile
        images = seen_images(runner) if sees_images else None
        subject = _subject(runner, checkpoint, network, directory, images)
        forms = list(forms_of(subject, options.engines, device, Path(folder)))
        measured = options.accuracy and runner.data.num_evaluation_images > 0
        if not measured:
            forms = [form for form in forms if isinstance(form, Absent) or form.is_timed]
        present = [form for form in forms if isinstance(form, Form)]
        noise = torch.randn(max(options.batches), *subject.size, generator=torch.Generator().manual_seed(runner.seed))
        timed = [form for form in present if form.is_timed]
        speeds = time_forms(timed, noise, options.threads, options.batches, options.repeats)
        parities = _parities(present, subject, runner, max(options.threads)) if measured else []
        report = Report(
            title_of(network, checkpoint, runner.model),
            facts,
            runner.seed,
            options.repeats,
            runner.data.num_evaluation_images if measured else 0,
            runner.model.task.columns,
            forms,
            speeds,
            parities,
            profiles_of(present) if options.profile else None,
            _codes(subject, device) if options.profile else None,
        )
        report.write(directory)
    _LOG.info("wrote %s and benchmark.md", directory / "benchmark.json")
    return report


def _codes(subject: Subject, device: torch.device) -> dict[str, int] | None:
    """How many codes of the integer runtime differ from those of the simulated network on the same inputs."""
    if subject.images is None or not subject.is_whole or device.type != "cpu":
        return None
    _LOG.info("comparing the codes of each layer")
    proof = prove(subject.simulated, integer(subject.simulated), subject.images[:_PROVEN])
    return {"compared": proof.codes, "differing": proof.differing}


def _subject(
    runner: Runner, checkpoint: str, network: QuantizedNetwork, directory: Path, images: torch.Tensor | None
) -> Subject:
    packed = directory / _PACKED
    return Subject(
        network,
        _float_network(runner, checkpoint, network),
        runner.data.input_size,
        packed.stat().st_size if packed.exists() else None,
        images,
        runner.model.task.timed_part,
    )


def _float_network(runner: Runner, checkpoint: str, network: QuantizedNetwork) -> nn.Module | str:
    """The float network, or why it is not at hand."""
    try:
        loaded = runner.load_network()
    except IsvitError as error:
        return str(error)
    require_same_float(checkpoint, network, loaded)
    return loaded.model


def _parities(forms: Sequence[Form], subject: Subject, runner: Runner, threads: int) -> list[Parity]:
    _LOG.info("measuring accuracy of %d forms; --accuracy false leaves it out", len(forms))
    return measure_forms(forms, subject, runner, threads)
