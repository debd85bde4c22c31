"""How true each form is to the float network, and to the simulated one, on the evaluation images."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import nn

from isvit_lightning.run.benchmark.forms import Form, Subject, reason_of
from isvit_lightning.run.benchmark.pytorch import ENGINE, SIMULATED
from isvit_lightning.run.benchmark.timing import limited_threads
from isvit_lightning.run.runner import Runner

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parity:
    """What a form gives on the evaluation images.

    Args:
        engine: of the form.
        form: its name.
        metrics: those of the task, by name, and ``same``: images in per cent that have the class of the simulated
            network.
        reason: why it is not measured; None where it is.
    """

    engine: str
    form: str
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


class Recorder(nn.Module):
    """Hands images to a form and keeps the class of each.

    Args:
        form: what computes.
        threads: that it may use.
        num_classes: of the network.
        batch_size: images at once, where the form is built for a number: a smaller batch is filled up.

    Attributes:
        classes: of the images so far, one tensor for each batch.
    """

    def __init__(self, form: Form, threads: int, num_classes: int, batch_size: int) -> None:
        super().__init__()
        self.form, self.num_classes, self.batch_size = form, num_classes, batch_size
        # In a tuple, so that a trainer does not move it: a form has its place.
        self._network = (form.make(threads),)
        self.classes: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` in float32, on the device of the images."""
        given = images
        if self.form.is_fixed and len(images) < self.batch_size:
            given = images[torch.arange(self.batch_size, device=images.device) % len(images)]
        logits: torch.Tensor = self._network[0](self.form.placed(given))
        logits = logits[: len(images)].to(images.device, torch.float32)
        self.classes.append(logits.argmax(dim=1).cpu())
        return logits


def measure_forms(forms: Sequence[Form], subject: Subject, runner: Runner, threads: int) -> list[Parity]:
    """Metrics of each form.

    Args:
        forms: the float one of PyTorch first, which the others are compared with.
        subject: what is measured.
        runner: model, data and trainers.
        threads: that forms may use.
    """
    rows: list[Parity] = []
    classes: dict[str, torch.Tensor] = {}
    for form in forms:
        row, given = _row(form, subject, runner, threads, is_first=form is forms[0])
        rows.append(row)
        classes |= {} if given is None else {f"{form.engine} {form.name}": given}
    reference = classes.get(f"{ENGINE} {SIMULATED}")
    return [_with_same(row, classes.get(f"{row.engine} {row.form}"), reference) for row in rows]


def _row(
    form: Form, subject: Subject, runner: Runner, threads: int, is_first: bool
) -> tuple[Parity, torch.Tensor | None]:
    """What is measured of a form, and the classes that it gives."""
    try:
        metrics, classes = _measured(form, subject, runner, threads, is_first)
    except Exception as error:  # noqa: BLE001 - the other forms are measured all the same
        return Parity(form.engine, form.name, reason=reason_of(error)), None
    return Parity(form.engine, form.name, metrics), classes


def _measured(
    form: Form, subject: Subject, runner: Runner, threads: int, is_first: bool
) -> tuple[dict[str, float], torch.Tensor | None]:
    """Metrics and classes; nothing of a part of a network that is measured as a whole."""
    has_classes = runner.model.task.compares_with_float
    if not has_classes and form.whole is None:
        return {}, None
    _LOG.info("%s %s: measuring on %d images", form.engine, form.name, runner.data.num_evaluation_images)
    is_float = is_first and form.is_float
    torch.compiler.reset()
    with limited_threads(threads):
        if not has_classes:
            return runner.measure(cast("nn.Module", form.whole), is_float), None
        classes = int(cast("Any", subject.simulated.model).num_classes)
        recorder = Recorder(form, threads, classes, runner.data.batch_size)
        return runner.measure(recorder, is_float), torch.cat(recorder.classes)


def _with_same(row: Parity, classes: torch.Tensor | None, reference: torch.Tensor | None) -> Parity:
    if classes is None or reference is None:
        return row
    same = 100 * float((classes == reference).double().mean())
    return replace(row, metrics={**row.metrics, "same": round(same, 3)})
