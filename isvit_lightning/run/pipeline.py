"""The steps of a recipe in order."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import nn

from isvit_lightning.networks import OpenedNetwork, open_by_specs, open_float, quantizers
from isvit_lightning.quantizers import Spec
from isvit_lightning.recipe import Bits, Recipe
from isvit_lightning.run.equality import require_equal
from isvit_lightning.stages import Fit, Schedule, Stage, Step, UnitStage, Work
from isvit_lightning.stages.resume import collect, restore, share_units
from isvit_lightning.storage.parts import Part, Parts
from isvit_lightning.system.processes import rank

_LOG = logging.getLogger(__name__)


class Rows(Protocol):
    """Who wants to see the network behind a step."""

    def wants(self, step: Step) -> bool:
        """Whether there is a use for it."""

    def show(self, step: Step, model: nn.Module) -> None:
        """Take a look."""


@dataclass(frozen=True)
class Calibration:
    """Everything that the steps of a recipe need.

    Args:
        model: float network; it is left untouched.
        images: calibration images ``(n, 3, height, width)``, preprocessed.
        bits: widths.
        recipe: choices of the method.
        schedule: iterations, batch size and caches.
        seed: seed of the run.
        seconds: filled with the time that each step took, that of an interrupted run included.
    """

    model: nn.Module
    images: torch.Tensor
    bits: Bits
    recipe: Recipe
    schedule: Schedule
    seed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def calibrate_network(
    calibration: Calibration, fit: Fit, rows: Rows | None = None, parts: Parts | None = None
) -> OpenedNetwork:
    """Take the steps and return the quantized network.

    Args:
        calibration: network, images and choices.
        fit: trains the stage of a step.
        rows: looks at the network behind a step, before the next one.
        parts: finished parts, which are not done again; None does everything, in this process alone.
    """
    with _restored(calibration.model):
        return _take_steps(calibration, fit, rows, parts)


def require_equal_outputs(calibration: Calibration, compared: Iterable[Recipe] = ()) -> None:
    """Refuse, before anything long begins, a network that is opened as something else than it is.

    Args:
        calibration: network, images and choices; all are left as they are.
        compared: further recipes that open the network.

    Raises:
        IsvitError: with every quantizer off, the opened network gives other outputs than the float network.
    """
    with _restored(calibration.model):
        calibration.model.eval()
        for recipe in (calibration.recipe, *compared):
            transformed = recipe.transformed(calibration.model)
            opened = recipe.open(transformed, calibration.bits)
            require_equal(calibration.model, transformed, opened, calibration.images)


def _take_steps(calibration: Calibration, fit: Fit, rows: Rows | None, parts: Parts | None) -> OpenedNetwork:
    """Steps before a finished one are not even loaded, unless somebody wants to see their network."""
    recipe = calibration.recipe
    model = recipe.transformed(calibration.model)
    target = open_float(model, recipe.reconstruct)
    quantized = recipe.open(model, calibration.bits)
    calibration.seconds.update(parts.seconds() if parts is not None else {})
    first, kept = _last_kept(recipe.steps, rows, parts)
    for index, step in enumerate(recipe.steps[first:], first):
        started = time.perf_counter()
        part = kept if index == first else _kept(step, parts)
        if part is not None:
            quantized = _reopened(model, part, recipe)
        else:
            number = index + 1
            work = Work(
                quantized,
                target,
                calibration.images,
                calibration.schedule,
                calibration.seed,
                recipe.range_images,
                number,
            )
            _LOG.info("%s begins", step.name)
            step.take(work, fit if parts is None else partial(_fit_rest, fit, parts))
            _keep(step, quantized, parts, time.perf_counter() - started)
        spent = calibration.seconds.get(step.name, 0.0) + time.perf_counter() - started
        calibration.seconds[step.name] = spent
        if rows is not None and rows.wants(step):
            rows.show(step, quantized.model)
    return quantized


def _last_kept(steps: list[Step], rows: Rows | None, parts: Parts | None) -> tuple[int, Part | None]:
    """Index and part of the step to go on from: the last one that is kept with no wanted network before it."""
    wanted = [index for index, step in enumerate(steps) if rows is not None and rows.wants(step)]
    for index in reversed(range(min([*wanted, len(steps) - 1]) + 1)):
        part = _kept(steps[index], parts)
        if part is not None:
            return index, part
    return 0, None


def _kept(step: Step, parts: Parts | None) -> Part | None:
    """The network behind ``step``, where an earlier run kept it; steps that tune keep their units instead."""
    return None if parts is None or step.tunes else parts.read(step.name)


def _keep(step: Step, quantized: OpenedNetwork, parts: Parts | None, seconds: float) -> None:
    if parts is not None and not step.tunes and rank() == 0:
        specs = {
            path: {**quantizer.spec.as_dict(), "enabled": quantizer.enabled}
            for path, quantizer in quantizers(quantized.model).items()
        }
        parts.write(step.name, quantized.model.state_dict(), seconds, description=specs)


def _reopened(model: nn.Module, part: Part, recipe: Recipe) -> OpenedNetwork:
    """The quantized network as it was behind a step; its quantizers can choose ranges anew."""
    specs = {path: Spec.of(values) for path, values in part.description.items()}
    opened = open_by_specs(model, specs, part.tensors, recipe.reconstruct)
    opened.model.load_state_dict(part.tensors)
    recipe.give_searches(opened.model)
    for path, quantizer in quantizers(opened.model).items():
        quantizer.enabled = part.description[path]["enabled"]
    return opened


def _fit_rest(fit: Fit, parts: Parts, stage: Stage) -> None:
    """Do what is left of ``stage``, shared among the processes."""
    if not isinstance(stage, UnitStage):
        fit(stage)
        return
    if stage.tunes:
        restore(stage, parts)
    planned = stage.plan
    share_units(stage)
    if stage.plan:
        fit(stage)
    else:
        stage.setup("fit")
    collect(stage, planned)


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Give ``network`` its device, modes and gradient flags back: the steps need them otherwise."""
    gradients = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    modes = [(module, module.training) for module in network.modules()]
    device = next(network.parameters()).device
    try:
        yield
    finally:
        network.to(device)
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)
        for module, flag in modes:
            module.training = flag
