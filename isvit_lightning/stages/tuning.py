"""Block-wise reconstruction: a unit's weights learn to reproduce the float unit's outputs (I&S-ViT eq. 12)."""

import math

import torch
from torch import nn

from isvit_lightning.caches import computable
from isvit_lightning.layers import QuantConv2d, QuantLinear, QuantWindowAttention
from isvit_lightning.method import Tuning
from isvit_lightning.networks import OpenedNetwork, quantizers
from isvit_lightning.quantizers import UniformQuantizer
from isvit_lightning.stages.base import Schedule, UnitStage


def trainable_parameters(module: nn.Module) -> list[torch.Tensor]:
    """Weights and biases of the quantized layers below ``module``, and Swin's position bias tables; no norm."""
    found: list[torch.Tensor] = []
    for child in module.modules():
        if isinstance(child, QuantLinear | QuantConv2d):
            found += [parameter for parameter in (child.weight, child.bias) if parameter is not None]
        elif isinstance(child, QuantWindowAttention):
            found.append(child.relative_position_bias_table)
    return found


def trainable_scales(module: nn.Module) -> list[torch.Tensor]:
    """Scales of the per-tensor uniform activation quantizers below ``module`` that are switched on."""
    return [
        quantizer.scale
        for quantizer in quantizers(module).values()
        if isinstance(quantizer, UniformQuantizer) and quantizer.enabled and quantizer.scale.dim() == 0
    ]


def reconstruction_loss(
    output: torch.Tensor, target: torch.Tensor, variance: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared error summed over axis 1 and averaged over the others, a scalar.

    The published code's form: ``tokens`` times the mean squared error for ``(batch, tokens, channels)``.

    Args:
        output: output of the unit.
        target: output of the float unit, same shape.
        variance: what each squared error is divided by; broadcasts against them.
    """
    error = (output - target).square_()
    return (error if variance is None else error / variance).mean() * output.shape[1]


def token_variance(targets: torch.Tensor, module: nn.Module) -> torch.Tensor | None:
    """Variance ``(batch, …, 1)`` of each token of ``targets (batch, …, channels)`` over its channels.

    None for outputs that are no tokens: logits, and the channels-first map of the patch projection.
    """
    if targets.dim() < 3 or isinstance(module, QuantConv2d):
        return None
    return targets.var(dim=-1, keepdim=True) + torch.finfo(targets.dtype).eps


class TuningStage(UnitStage):
    """Adam with a cosine on each unit's weights, a fresh optimizer per unit (method page, section 3.4).

    Args:
        quantized: network that is tuned.
        target: float network.
        images: calibration images ``(n, 3, height, width)``.
        schedule: iterations, batch size and seed.
        tuning: learning rate and inputs.
        number: 1 or 3, part of the seed.
    """

    def __init__(
        self,
        quantized: OpenedNetwork,
        target: OpenedNetwork,
        images: torch.Tensor,
        schedule: Schedule,
        tuning: Tuning,
        number: int,
    ) -> None:
        super().__init__(quantized, target, images, schedule)
        self.tuning: Tuning = tuning
        self.number = number
        self._generator = torch.Generator()

    @property
    def reads_quantized(self) -> bool:
        """Whether units read the activations of the quantized network so far."""
        return self.tuning.inputs != "float"

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam, whose parameters and state are replaced at each unit."""
        first = trainable_parameters(self.quantized.units[self.plan[0]].module)
        return torch.optim.Adam(first, lr=self.tuning.learning_rate, fused=True)

    def on_train_epoch_start(self) -> None:
        """Prepare the unit, and the optimizer for it."""
        super().on_train_epoch_start()
        groups: list[tuple[list[torch.Tensor], float]] = [
            ([*trainable_parameters(self.unit.module)], self.tuning.learning_rate)
        ]
        if self.tuning.range_learning_rate:
            # A rate relative to each scale: Adam's steps do not know how large a scale is.
            rate = self.tuning.range_learning_rate
            groups += [([scale], rate * float(scale)) for scale in trainable_scales(self.unit.module)]
        self._rates = [rate for _, rate in groups]
        self._floors = [(scale, scale / 10) for group, _ in groups[1:] for scale in group]
        optimizer = self._optimizer()
        optimizer.state.clear()
        optimizer.param_groups.clear()
        for tensors, rate in groups:
            for tensor in tensors:
                tensor.requires_grad_(True)
            optimizer.add_param_group({"params": tensors, "lr": rate})
        # Draws depend on seed, stage and unit alone, so that neither resuming nor the order of work changes them.
        unit = self.plan[self.current_epoch]
        self._generator.manual_seed((self.schedule.seed * 10 + self.number) * 10_000 + unit)

    def training_step(self, step: int) -> None:
        """One step of Adam on a random batch.

        Args:
            step: number of the step within the unit, from 0.
        """
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        chosen = torch.randperm(len(self.targets), generator=self._generator)[: self.schedule.batch_size]
        total = torch.zeros((), device=self.device)
        for part in torch.split(chosen, self.micro_batch):
            loss = self._loss(part) * (len(part) / len(chosen))
            self.manual_backward(loss)
            total += loss.detach()
        decay = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        for group, rate in zip(self._optimizer().param_groups, self._rates, strict=True):
            group["lr"] = rate * decay
        optimizer.step()  # type: ignore[union-attr]
        with torch.no_grad():
            for scale, floor in self._floors:
                scale.clamp_(min=floor)
        self.last_loss = total
        if step == 0:
            self.first_loss = self.last_loss

    def on_train_epoch_end(self) -> None:
        """Close the unit: its weights are final for this stage."""
        for group in self._optimizer().param_groups:
            for tensor in group["params"]:
                tensor.requires_grad_(False)
                tensor.grad = None

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.optimizers().optimizer  # type: ignore[union-attr]

    @property
    def micro_batch(self) -> int:
        """Images that pass the unit at once."""
        whole = 16 if self.device.type == "cpu" else self.schedule.batch_size
        return self.schedule.micro_batch or whole

    def _loss(self, chosen: torch.Tensor) -> torch.Tensor:
        """Loss of the unit on the images ``chosen``, a vector of indices."""
        inputs = computable(self.inputs[chosen])
        if self.tuning.inputs == "mixed":
            from_float = torch.rand(inputs.shape, generator=self._generator) < 0.5
            inputs = torch.where(from_float, computable(self.float_inputs[chosen]), inputs)
        output = self.unit.module(inputs.to(self.device))
        target = computable(self.targets[chosen]).to(self.device)
        variance = token_variance(target, self.unit.module) if self.tuning.loss == "normalized" else None
        return reconstruction_loss(output, target, variance)
