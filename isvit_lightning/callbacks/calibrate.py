"""Chooses the ranges of quantizers at the right moment, and freezes them."""

import time
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer

from isvit_lightning.callbacks.walk import UnitWalk
from isvit_lightning.networks import calibrate_activations, calibrate_weights, quantizers
from isvit_lightning.quantizers import Role
from isvit_lightning.storage.caches import computable


class CalibrateQuantizers(Callback):
    """Before a stage: ranges of everything that is switched on and has none yet. Before a unit: anew, by option.

    ``tuning.recalibrate`` of the stage decides: ``never`` keeps the ranges of activations that exist, ``stage`` chooses
    them anew before the stage, ``unit`` before each unit on the very inputs it is tuned with.

    Args:
        range_images: images on which ranges of activations are chosen.

    Attributes:
        seconds: time spent on choosing ranges so far.
    """

    def __init__(self, range_images: int = 64) -> None:
        self.range_images = range_images
        self.seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ranges of the whole network."""
        started = time.perf_counter()
        stage = cast("UnitWalk", pl_module)
        if stage.ranges_chosen:
            return
        model = stage.quantized.model
        active = [quantizer for quantizer in quantizers(model).values() if quantizer.enabled]
        if any(quantizer.role is Role.WEIGHT and not quantizer.calibrated for quantizer in active):
            calibrate_weights(model)
        missing = any(quantizer.role is not Role.WEIGHT and not quantizer.calibrated for quantizer in active)
        if missing or (stage.tuning is not None and stage.tuning.recalibrate == "stage"):
            sample = stage.images[: self.range_images].to(stage.device)
            calibrate_activations(model, lambda: stage.quantized.walk(sample))
        self.seconds += time.perf_counter() - started

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ranges of one unit."""
        stage = cast("UnitWalk", pl_module)
        if stage.tuning is not None and stage.tuning.recalibrate == "unit":
            stage.enter_unit()
            started = time.perf_counter()
            unit, sample = stage.unit.module, computable(stage.sample(self.range_images)).to(stage.device)
            calibrate_activations(unit, lambda: unit(sample))
            self.seconds += time.perf_counter() - started
