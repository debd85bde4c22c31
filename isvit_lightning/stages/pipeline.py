"""The stages in order: I&S-ViT's smooth optimization strategy, or the same without tuning."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from isvit_lightning.networks import (
    OpenedNetwork,
    calibrate_activations,
    calibrate_weights,
    open_float,
    open_quantized,
    switch,
)
from isvit_lightning.recipe.method import Bits, Method
from isvit_lightning.stages.activation import ActivationStage
from isvit_lightning.stages.base import Schedule, UnitStage
from isvit_lightning.stages.reparameterization import ReparameterizationStage
from isvit_lightning.stages.reparameterize import reparameterize
from isvit_lightning.stages.resume import FOLDED, collect, restore, share_units
from isvit_lightning.stages.weight import WeightStage
from isvit_lightning.storage.parts import Checkpoints
from isvit_lightning.system.processes import rank

Fit = Callable[[UnitStage], None]
"""Runs a stage: builds a trainer with ``max_epochs=stage.epochs`` and :class:`CalibrateQuantizers`, calls ``fit``."""


@dataclass(frozen=True)
class Calibration:
    """Everything a run of the stages needs.

    Args:
        model: float network; it is left untouched.
        images: calibration images ``(n, 3, height, width)``, preprocessed.
        bits: widths.
        method: choices of the method.
        schedule: iterations, batch size and seed.
    """

    model: nn.Module
    images: torch.Tensor
    bits: Bits
    method: Method
    schedule: Schedule


def calibrate_network(
    calibration: Calibration,
    fit: Fit,
    after_stage1: Callable[[nn.Module], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> OpenedNetwork:
    """Run stage 1, 2 and 3 and return the quantized network.

    Args:
        calibration: network, images and choices.
        fit: runs one stage.
        after_stage1: called with the network of quantized activations and float weights that stage 1 leaves.
        checkpoints: finished parts, which are not done again; None does everything, in this process alone.
    """
    with _restored(calibration.model):
        run = fit if checkpoints is None else partial(_fit_rest, fit, checkpoints)
        return _run_stages(calibration, run, after_stage1, checkpoints)


def _run_stages(
    calibration: Calibration,
    fit: Fit,
    after_stage1: Callable[[nn.Module], None] | None,
    checkpoints: Checkpoints | None,
) -> OpenedNetwork:
    """Stage 1 is not even loaded where stage 2 is finished and nobody asks for its network."""
    method = calibration.method
    quantized = open_quantized(calibration.model, calibration.bits, method)
    target = open_float(calibration.model, method.reconstruct)
    folded = checkpoints.read(FOLDED) if checkpoints is not None and method.reparameterize else None
    if folded is None or after_stage1 is not None:
        _tune_activations(calibration, quantized, target, fit)
        if after_stage1 is not None:
            after_stage1(quantized.model)
    if folded is not None:
        quantized = open_quantized(calibration.model, calibration.bits, method, deployed=True)
        quantized.model.load_state_dict(folded)
    elif method.reparameterize:
        fit(ReparameterizationStage(*_arguments(calibration, quantized, target)))
        if checkpoints is not None and rank() == 0:
            checkpoints.write(FOLDED, quantized.model.state_dict())
    _tune_weights(calibration, quantized, target, fit)
    return quantized


def _fit_rest(fit: Fit, checkpoints: Checkpoints, stage: UnitStage) -> None:
    """Do what is left of ``stage``, shared among the processes."""
    if stage.tuning is not None:
        restore(stage, checkpoints)
    planned = stage.plan
    share_units(stage)
    if stage.plan:
        fit(stage)
    else:
        stage.setup("fit")
    started = time.perf_counter()
    collect(stage, planned)
    checkpoints.seconds[stage.part] = checkpoints.seconds.get(stage.part, 0.0) + time.perf_counter() - started


def _arguments(
    calibration: Calibration, quantized: OpenedNetwork, target: OpenedNetwork
) -> tuple[OpenedNetwork, OpenedNetwork, torch.Tensor, Schedule, Method]:
    return quantized, target, calibration.images, calibration.schedule, calibration.method


def _tune_activations(calibration: Calibration, quantized: OpenedNetwork, target: OpenedNetwork, fit: Fit) -> None:
    if calibration.method.stage1.enabled:
        fit(ActivationStage(*_arguments(calibration, quantized, target)))
    else:
        sample = calibration.images[: calibration.method.range_images]
        switch(quantized.model, weights=False, activations=True)
        calibrate_activations(quantized.model, lambda: quantized.walk(sample))


def _tune_weights(calibration: Calibration, quantized: OpenedNetwork, target: OpenedNetwork, fit: Fit) -> None:
    if calibration.method.stage3.enabled:
        fit(WeightStage(*_arguments(calibration, quantized, target)))
    else:
        switch(quantized.model, weights=True, activations=True)
        calibrate_weights(quantized.model)


def quantize_without_tuning(calibration: Calibration) -> OpenedNetwork:
    """Ranges, stage 2 if the method has it, ranges of the weights: what tuning starts from.

    Args:
        calibration: network, images and choices; the schedule and the tunings are not used.
    """
    method = calibration.method
    quantized = open_quantized(calibration.model, calibration.bits, method)
    sample = calibration.images[: method.range_images]
    switch(quantized.model, weights=False, activations=True)
    calibrate_activations(quantized.model, lambda: quantized.walk(sample))
    if method.reparameterize:
        for pair in quantized.pairs:
            reparameterize(pair, method.statistic, method.round_zero_point)
    switch(quantized.model, weights=True, activations=True)
    calibrate_weights(quantized.model)
    return quantized


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Give ``network`` its device, modes and gradient flags back: the stages need them otherwise."""
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
