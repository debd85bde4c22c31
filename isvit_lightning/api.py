"""Calibration from Python, in three lines."""

from collections.abc import Iterable

import torch
from lightning.pytorch import Trainer
from torch import nn

from isvit_lightning.callbacks import CalibrateQuantizers, UnitProgress
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.recipe.method import Bits, Method
from isvit_lightning.sources.architecture import Architecture
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.stages import Calibration, Schedule, UnitStage, calibrate_network


def calibrate(
    network: nn.Module,
    images: torch.Tensor | Iterable[torch.Tensor],
    bits: int | Bits = 4,
    method: Method | None = None,
    iterations: int = 1000,
    batch_size: int = 64,
    seed: int = 0,
    accelerator: str = "auto",
) -> QuantizedNetwork:
    """Calibrate ``network`` with I&S-ViT.

    Example::

        quantized = isvit_lightning.calibrate(network, images, bits=4)
        quantized.save("quantized.safetensors")
        network = isvit_lightning.load("quantized.safetensors")

    Args:
        network: float timm network; it is left untouched.
        images: preprocessed images ``(n, 3, height, width)``, or batches of them; labels are not needed.
        bits: one width for weights and activations, or both.
        method: choices of the method; the recommended ones by default.
        iterations: optimizer steps per unit and stage.
        batch_size: images per step.
        seed: seed of the draws of images.
        accelerator: Lightning's name of the device: auto, cpu, gpu.

    Returns:
        The quantized network, ready to run and to save.

    Raises:
        IsvitError: the network cannot be opened, the images are missing or not finite, or bits lie outside 2 to 8.
    """
    for name, value in (("iterations", iterations), ("batch_size", batch_size)):
        if value < 1:
            raise IsvitError(f"The argument {name} is {value}, expected at least 1: change it.")
    preprocessing = Preprocessing.of(network)
    images = _joined(images, preprocessing.input_size if hasattr(network, "patch_embed") else None)
    widths = bits if isinstance(bits, Bits) else Bits(bits, bits)
    method = method or Method()
    schedule = Schedule(iterations, batch_size, seed)
    ranges, progress = CalibrateQuantizers(method.range_images), UnitProgress()

    def fit(stage: UnitStage) -> None:
        trainer = Trainer(
            max_epochs=stage.epochs,
            accelerator=accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ranges, progress],
        )
        trainer.fit(stage)

    quantized = calibrate_network(Calibration(network, images, widths, method, schedule), fit)
    return QuantizedNetwork(quantized.model, Architecture.of(network), preprocessing, widths, method)


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
