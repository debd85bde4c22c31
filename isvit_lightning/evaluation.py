"""How a classifier is measured on images, with labels or without."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from isvit_lightning.errors import IsvitError
from isvit_lightning.stages.losses import divergence


class Evaluator(LightningModule):
    """Measures a network and lists its predictions.

    Where images have labels, top-1 and top-5; where the float network's logits are given, the share of images with its
    class (agreement) and the Kullback-Leibler divergence of the network's probabilities from its (kl, in nats).

    Args:
        network: maps images ``(batch, 3, height, width)`` to logits ``(batch, classes)``.
        classes: number of classes.
        float_logits: of each batch of this process, in order; None compares with nothing.

    Attributes:
        logits: what the network gave for each batch, on the CPU, while nothing is compared.
    """

    def __init__(self, network: nn.Module, classes: int, float_logits: Sequence[torch.Tensor] | None = None) -> None:
        super().__init__()
        self.network = network
        # "micro" counts images; torchmetrics' default averages over classes.
        self.top1 = MulticlassAccuracy(classes, top_k=1, average="micro")
        self.top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro")
        self.agreement, self.kl = MeanMetric(), MeanMetric()
        self.logits: list[torch.Tensor] = []
        self._float_logits = float_logits

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        """Count one batch of ``images, labels``; a label of -1 is none."""
        images, labels = batch
        logits = self.network(images).float()
        metrics: dict[str, Any] = {}
        if bool((labels >= 0).all()):
            self.top1(logits, labels)
            self.top5(logits, labels)
            metrics |= {"top1": self.top1, "top5": self.top5}
        if self._float_logits is None:
            self.logits.append(logits.cpu())
        else:
            metrics |= self._compared(logits, index)
        if metrics:
            self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(images))

    def predict_step(self, batch: Any, index: int) -> torch.Tensor:
        """Probabilities ``(batch, classes)``."""
        images = batch[0] if isinstance(batch, list | tuple) else batch
        logits: torch.Tensor = self.network(images)
        return logits.float().softmax(dim=1)

    def _compared(self, logits: torch.Tensor, index: int) -> dict[str, Any]:
        wanted = (self._float_logits or ())[index].to(logits.device)
        if wanted.shape != logits.shape:
            raise IsvitError(
                f"The float network was measured on other images: a batch of {len(wanted)} instead of {len(logits)}, "
                "expected the same: leave data as it was."
            )
        self.agreement(wanted.argmax(dim=1) == logits.argmax(dim=1))
        self.kl(divergence(wanted, logits))
        return {"agreement": self.agreement, "kl": self.kl}
