"""Chooses the ranges of quantizers at the right moment."""

import time
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer

from isvit_lightning.networks import calibrate_activations, calibrate_ranges, quantizers
from isvit_lightning.stages import UnitStage


class CalibrateQuantizers(Callback):
    """Before a stage: ranges of everything that is switched on and has none yet. Before a unit: anew, by option.

    ``recalibrate`` of the stage decides: ``never`` keeps the ranges of activations that exist, ``stage`` chooses them
    anew before the stage, ``unit`` before each unit on the very inputs it is tuned with.

    Attributes:
        seconds: time spent on choosing ranges so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ranges of the whole network."""
        started = time.perf_counter()
        stage = cast("UnitStage", pl_module)
        if stage.ranges_chosen:
            return
        model = stage.quantized.model
        active = [quantizer for quantizer in quantizers(model).values() if quantizer.enabled]
        weights = any(quantizer.role.weight and not quantizer.calibrated for quantizer in active)
        missing = any(not quantizer.role.weight and not quantizer.calibrated for quantizer in active)
        sample = stage.images[: stage.range_images].to(stage.device)
        calibrate_ranges(model, lambda: stage.quantized.walk(sample), weights, missing or stage.recalibrate == "stage")
        self.seconds += time.perf_counter() - started

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ranges of one unit."""
        stage = cast("UnitStage", pl_module)
        if stage.recalibrate == "unit":
            stage.enter_unit()
            started = time.perf_counter()
            unit, sample = stage.unit, stage.sample(stage.range_images)
            calibrate_activations(unit.module, lambda: unit(sample))
            self.seconds += time.perf_counter() - started
