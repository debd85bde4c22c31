"""Refuses to evaluate a network that is not fully calibrated."""

from lightning.pytorch import Callback, LightningModule, Trainer

from isvit_lightning.networks import require_calibrated


class RequireCalibrated(Callback):
    """Checks every quantizer before validation, test and prediction."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before validation."""
        require_calibrated(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before test."""
        require_calibrated(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before prediction."""
        require_calibrated(pl_module)
