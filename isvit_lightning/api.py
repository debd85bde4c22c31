"""Calibration from Python, in three lines."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.recipe import DEFAULT, Bits, Recipe, read_recipe, record_of
from isvit_lightning.run.fitting import UnitFitter
from isvit_lightning.run.pipeline import Calibration, calibrate_network
from isvit_lightning.sources.architecture import Architecture
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.stages import Schedule


def calibrate(
    network: nn.Module,
    images: torch.Tensor | Iterable[torch.Tensor],
    bits: int | Bits = 4,
    recipe: str | Recipe = DEFAULT,
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
        network: float timm network; it is left untouched.
        images: preprocessed images ``(n, 3, height, width)``, or batches of them; labels are not needed.
        bits: one width for weights and activations, or both.
        recipe: name of a recipe that comes with the program, path of such a file, or a recipe.
        seed: seed of the draws of images.
        accelerator: Lightning's name of the device: auto, cpu, gpu.
        **schedule: fields of :class:`Schedule`, such as ``iterations=100``.

    Returns:
        The quantized network, ready to run and to save.

    Raises:
        IsvitError: the network cannot be opened, the images are missing or not finite, or a choice is out of its range.
    """
    preprocessing = Preprocessing.of(network)
    images = _joined(images, preprocessing.input_size if hasattr(network, "patch_embed") else None)
    widths = bits if isinstance(bits, Bits) else Bits(bits, bits)
    steps = read_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = Schedule(**schedule)

    def make_trainer(**options: Any) -> Trainer:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
        return Trainer(**{"accelerator": accelerator, "devices": 1, **quiet, **options})

    calibration = Calibration(network, images, widths, steps, chosen, seed)
    quantized = calibrate_network(calibration, UnitFitter(make_trainer, {}))
    record = record_of({"recipe": steps, "bits": widths, "schedule": chosen, "seed": seed})
    return QuantizedNetwork(quantized.model, Architecture.of(network), preprocessing, record)


def _joined(images: torch.Tensor | Iterable[torch.Tensor], input_size: tuple[int, int, int] | None) -> torch.Tensor:
    """All images in one tensor ``(n, 3, height, width)``; a network without timm's metadata takes any size."""
    batches = [images] if isinstance(images, torch.Tensor) else list(images)
    for batch in batches:
        if batch.dim() != 4 or (input_size is not None and tuple(batch.shape[1:]) != tuple(input_size)):
            wanted = "any size" if input_size is None else f"{input_size[1]} x {input_size[2]}"
            raise IsvitError(
                f"The images have shape {tuple(batch.shape)}, expected (n, 3, height, width) of {wanted}: check the "
                "argument images."
            )
    if not sum(map(len, batches)):
        raise IsvitError(
            "There are no images, expected (n, 3, height, width) with n of 1 or more: check the argument images."
        )
    return torch.cat(batches)
