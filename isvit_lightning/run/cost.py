"""The unit in which calibrations are compared across machines: one step of one float block."""

import statistics
import time

import torch
from torch import nn

from isvit_lightning.networks import SINGLE, Data, OpenedNetwork, Unit
from isvit_lightning.stages.losses import reconstruction_loss
from isvit_lightning.stages.passes import moved

_REPEATS = 3


def float_step_seconds(unit: Unit, inputs: Data, targets: Data, micro_batch: int) -> list[float]:
    """Seconds of forward, backward and Adam of one float unit, a few times after a warm-up.

    Args:
        unit: float unit; its weights are given back as they were.
        inputs: one batch of its inputs.
        targets: as many targets, for the loss of a calibration.
        micro_batch: images at once, as in the calibration, so that the measurement takes no more memory than it.
    """
    weights = [
        parameter
        for module in unit.module.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for parameter in module.parameters(recurse=False)
    ]
    kept = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=1e-9, fused=True)
    durations = []
    for _ in range(_REPEATS + 1):
        started = _now(weights[0].device)
        optimizer.zero_grad()
        for start in range(0, _images(inputs), micro_batch):
            _share_of_loss(unit, inputs, targets, slice(start, start + micro_batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        durations.append(_now(weights[0].device) - started)
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.requires_grad_(False)
            weight.grad = None
            weight.copy_(value)
    return durations[1:]


def float_block_step(network: OpenedNetwork, images: torch.Tensor, batch_size: int, micro_batch: int | None) -> float:
    """Median seconds of a step of the middle unit of a float network, where that computes.

    Args:
        network: the float network.
        images: at least one image; the first ones are used.
        batch_size: images of the step.
        micro_batch: images at once; None takes 16 on a CPU and the whole batch elsewhere.
    """
    device = next(network.model.parameters()).device
    at_once = micro_batch or (16 if device.type == "cpu" else batch_size)
    middle = len(network.units) // 2
    with torch.no_grad():
        data: Data = moved({SINGLE: images[:batch_size]}, device)
        for unit in network.units[:middle]:
            data = unit(unit.entered(data))
        unit = network.units[middle]
        inputs = unit.entered(data)
        targets = unit(inputs)
    return statistics.median(float_step_seconds(unit, inputs, targets, at_once))


def _now(device: torch.device) -> float:
    """Seconds on a clock, when everything that was given to an accelerator is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _images(data: Data) -> int:
    return len(next(iter(data.values())))


def _share_of_loss(unit: Unit, inputs: Data, targets: Data, rows: slice) -> torch.Tensor:
    """What ``rows`` add to the mean loss of all."""
    some = {name: tensor[rows] for name, tensor in inputs.items()}
    losses = [reconstruction_loss(output, targets[name][rows]) for name, output in unit(some).items()]
    return torch.stack(losses).sum() * (_images(some) / _images(inputs))
