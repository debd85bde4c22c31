"""Calibration from Python, in three lines."""

from dataclasses import fields
from os import PathLike
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from isvit_lightning.data.given import joined
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.networks import adapter_for, copied
from isvit_lightning.networks.known import require_own_forwards
from isvit_lightning.recipe import DEFAULT, Bits, Recipe, read_recipe, record_of
from isvit_lightning.run.fitting import UnitFitter
from isvit_lightning.run.pipeline import Calibration, calibrate_network, require_equal_outputs
from isvit_lightning.sources.architecture import Architecture
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.stages import Schedule


def calibrate(
    network: nn.Module,
    images: object,
    bits: int | Bits = 4,
    recipe: str | PathLike[str] | Recipe = DEFAULT,
    seed: int = 0,
    accelerator: str = "auto",
    **schedule: Any,
) -> QuantizedNetwork:
    """Calibrate ``network``.

    Example::

        quantized = isvit_lightning.calibrate(network, images, bits=4)
        quantized.save("quantized.safetensors")
        network = isvit_lightning.load("quantized.safetensors")

    Args:
        network: float timm network, on any device and in any mode; it is left untouched. Half precision, bfloat16 and
            float64 are calculated in float32. Of a compiled network the one that was compiled is taken.
        images: preprocessed images ``(n, 3, height, width)`` in floating-point numbers, as a tensor or a numpy array,
            or batches of them, such as a DataLoader gives: labels behind the images are left out, and of a mapping the
            entry with four dimensions is taken.
        bits: one width for weights and activations, or both.
        recipe: name of a recipe that comes with the program, path of such a file, or a recipe.
        seed: seed of the draws of images.
        accelerator: Lightning's name of the device: auto, cpu, gpu.
        **schedule: fields of :class:`Schedule`, such as ``iterations=100``.

    Returns:
        The quantized network in float32 on the CPU, ready to run and to save.

    Raises:
        IsvitError: the network cannot be opened, or is opened as something else than it is; the images are missing, of
            another shape, whole numbers or not finite; or a choice is out of its range.
    """
    network = _plain(network)
    adapter_for(network)
    preprocessing = Preprocessing.of(network)
    tensor = joined(images, preprocessing.input_size if hasattr(network, "patch_embed") else None)
    widths = bits if isinstance(bits, Bits) else Bits(bits, bits)
    steps, chosen = _recipe_of(recipe), _schedule_of(schedule)

    def make_trainer(**options: Any) -> Trainer:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
        return Trainer(**{"accelerator": accelerator, "devices": 1, **quiet, **options})

    calibration = Calibration(network, tensor, widths, steps, chosen, seed)
    with torch.inference_mode(False):
        require_equal_outputs(calibration)
        quantized = calibrate_network(calibration, UnitFitter(make_trainer, {}))
    record = record_of({"recipe": steps, "bits": widths, "schedule": chosen, "seed": seed})
    return QuantizedNetwork(quantized.model.cpu(), Architecture.of(network), preprocessing, record)


def _plain(network: object) -> nn.Module:
    """The float32 network inside ``network``; a copy, where it has another type.

    Raises:
        IsvitError: it is no network, has no weights, or a part of it is wrapped or patched.
    """
    while isinstance(network, nn.DataParallel | DistributedDataParallel | AveragedModel):
        network = network.module
    network = getattr(network, "_orig_mod", network)  # of torch.compile, whose types take seconds to import
    if not isinstance(network, nn.Module):
        raise IsvitError(
            f"The network is a {type(network).__name__}, expected a torch.nn.Module such as timm.create_model gives: "
            "check the argument network."
        )
    tensors = [*network.parameters(), *network.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise IsvitError(
            "The network is on the device meta, where tensors have no values, expected one with weights: load them "
            "before it is calibrated."
        )
    require_own_forwards(network)
    usual = [tensor.dtype == torch.float32 or not tensor.is_floating_point() for tensor in tensors]
    return network if all(usual) else copied(network).float()


def _recipe_of(recipe: object) -> Recipe:
    if isinstance(recipe, str | PathLike):
        return read_recipe(str(recipe))
    if not isinstance(recipe, Recipe):
        raise IsvitError(
            f"The recipe is a {type(recipe).__name__}, expected a name, a path or a Recipe: check the argument recipe."
        )
    return recipe


def _schedule_of(values: dict[str, Any]) -> Schedule:
    known = [field.name for field in fields(Schedule)]
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise IsvitError(f"There is no argument {unknown[0]}, expected one of {', '.join(known)}: correct it.")
    return Schedule(**values)
