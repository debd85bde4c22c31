"""Block-wise reconstruction: a unit's weights learn to reproduce the float unit's outputs (I&S-ViT eq. 12)."""

import logging
import math

import torch
from torch import nn

from isvit_lightning.layers import QuantConv2d, QuantLinear, QuantWindowAttention
from isvit_lightning.networks import OpenedNetwork, quantizers
from isvit_lightning.quantizers import UniformQuantizer
from isvit_lightning.recipe.method import Tuning
from isvit_lightning.stages.base import Schedule, UnitStage
from isvit_lightning.stages.compilation import callable_of
from isvit_lightning.stages.draw import draw_batch, draw_mixture
from isvit_lightning.stages.gradients import FlatGradients
from isvit_lightning.stages.halving import MicroBatch
from isvit_lightning.stages.held import HeldWeights
from isvit_lightning.stages.passes import Rows
from isvit_lightning.stages.rollback import CHECKS, BestState
from isvit_lightning.storage.caches import computable
from isvit_lightning.system.processes import require_equal, sum_over_processes

_LOG = logging.getLogger(__name__)


def _layers(module: nn.Module) -> list[QuantLinear | QuantConv2d]:
    """The quantized layers below ``module``."""
    return [child for child in module.modules() if isinstance(child, QuantLinear | QuantConv2d)]


def _trainable_layers(module: nn.Module) -> list[list[torch.Tensor]]:
    """Weight and bias of each quantized layer below ``module``, and each of Swin's position bias tables; no norm."""
    found: list[list[torch.Tensor]] = []
    for child in module.modules():
        if isinstance(child, QuantLinear | QuantConv2d):
            found.append([parameter for parameter in (child.weight, child.bias) if parameter is not None])
        elif isinstance(child, QuantWindowAttention):
            found.append([child.relative_position_bias_table])
    return found


def trainable_parameters(module: nn.Module) -> list[torch.Tensor]:
    """Weights and biases of the quantized layers below ``module``, and Swin's position bias tables; no norm."""
    return [parameter for layer in _trainable_layers(module) for parameter in layer]


def rated_parameters(module: nn.Module, tuning: Tuning) -> list[tuple[list[torch.Tensor], float]]:
    """:func:`trainable_parameters` in groups, with the initial learning rate of each.

    Args:
        module: the unit, with the weights that its tuning begins with.
        tuning: one rate for all, or the rate relative to the root mean square of each weight.
    """
    if tuning.learning_rate is not None:
        return [(trainable_parameters(module), tuning.learning_rate)]
    relative = tuning.relative_learning_rate
    return [(layer, relative * float(layer[0].detach().square().mean().sqrt())) for layer in _trainable_layers(module)]


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


def token_variance(targets: Rows, module: nn.Module) -> torch.Tensor | None:
    """Variance ``(images, …, 1)`` of each token of ``targets (images, …, channels)`` over its channels.

    None for outputs that are no tokens: logits, and the channels-first map of the patch projection.
    """
    if len(targets.shape) < 3 or isinstance(module, QuantConv2d):
        return None
    return torch.cat([_token_variance(computable(targets[at : at + 16])) for at in range(0, len(targets), 16)])


def _token_variance(targets: torch.Tensor) -> torch.Tensor:
    # By hand: the library's variance reads the values one by one, which is slow.
    centered = targets - targets.mean(dim=-1, keepdim=True)
    variance = centered.square_().sum(dim=-1, keepdim=True) / (targets.shape[-1] - 1)
    return variance + torch.finfo(targets.dtype).eps


def channel_variance(targets: Rows, device: torch.device, processes: int = 1) -> torch.Tensor:
    """Variance ``(channels,)`` of each channel of ``targets (images, tokens, channels)`` over images and tokens.

    Args:
        targets: those of this process.
        device: of the process.
        processes: how many processes hold a share of them.
    """
    sums = torch.zeros(3, targets.shape[-1], dtype=torch.float64)
    for start in range(0, len(targets), 16):
        values = targets[start : start + 16].double().flatten(0, -2).cpu()
        sums += torch.stack([torch.full_like(values[0], len(values)), values.sum(dim=0), values.square().sum(dim=0)])
    if processes > 1:
        sums = sums.to(device)
        sum_over_processes(sums)
    count, total, squares = sums.cpu()
    variance = squares / count - (total / count).square()
    return (variance.clamp_min(0).float() + torch.finfo(torch.float32).eps).to(device)


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
        return torch.optim.Adam(first, fused=True)

    def on_fit_start(self) -> None:
        """Begin with the micro-batch that is asked for."""
        super().on_fit_start()
        self._pieces = MicroBatch(self.micro_batch)

    def on_train_epoch_start(self) -> None:
        """Prepare the unit, and the optimizer for it."""
        super().on_train_epoch_start()
        groups = rated_parameters(self.unit.module, self.tuning)
        weights = len(groups)
        if self.tuning.range_learning_rate:
            # A rate relative to each scale: Adam's steps do not know how large a scale is.
            rate = self.tuning.range_learning_rate
            groups += [([scale], rate * float(scale)) for scale in trainable_scales(self.unit.module)]
        self._rates = [rate for _, rate in groups]
        self._floors = [(scale, scale / 10) for group, _ in groups[weights:] for scale in group]
        optimizer = self._optimizer()
        optimizer.state.clear()
        optimizer.param_groups.clear()
        for tensors, rate in groups:
            for tensor in tensors:
                tensor.requires_grad_(True)
            optimizer.add_param_group({"params": tensors, "lr": rate})
        self._run_unit = callable_of(self.unit.module, self.schedule.compile_units)
        self._best = BestState(self._tuned())
        # A compiled unit quantizes its weights in the same pass as everything else.
        self._held = HeldWeights([] if self.schedule.compile_units else _layers(self.unit.module))
        self._channel_variance: torch.Tensor | None = None
        self._token_variance: torch.Tensor | None = None
        if self.tuning.loss == "normalized" and self.unit.mixed:
            self._channel_variance = channel_variance(self.targets, self.device, self._processes)
        elif self.tuning.loss == "normalized":
            self._token_variance = token_variance(self.targets, self.unit.module)
        self._gradients: list[FlatGradients] = []
        # Draws depend on seed, stage and unit alone, so that neither resuming nor the order of work changes them.
        unit = self.plan[self.current_epoch]
        self._generator.manual_seed((self.schedule.seed * 10 + self.number) * 10_000 + unit)

    def training_step(self, step: int) -> None:
        """One step of Adam on a random batch.

        Args:
            step: number of the step within the unit, from 0.
        """
        optimizer = self.optimizers()
        chosen = draw_batch(len(self.images), self.schedule.batch_size, self._generator)
        # Every process draws for all images of the batch, so that the number of processes changes no draw.
        from_float = self._draw_mixture(len(chosen))
        where = f"{self.title} {self.unit.name}"
        with self._held:
            self._pieces.retry(lambda size: self._backward(chosen, from_float, size), where, self.device)
        if self._processes > 1:
            sum_over_processes(self._gradients[0].vector)
        self._held.differentiate()
        self.last_loss = self._gradients[0].loss.clone()
        if step == 0:
            self.first_loss = self.last_loss
        if step % max(1, self.steps // CHECKS) == 0:
            # Before the step, so that the state is the one that gave this loss.
            self._best.offer(self.last_loss)
        decay = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        for group, rate in zip(self._optimizer().param_groups, self._rates, strict=True):
            group["lr"] = rate * decay
        optimizer.step()  # type: ignore[union-attr]
        with torch.no_grad():
            for scale, floor in self._floors:
                scale.clamp_(min=floor)
        if step == self.steps - 1:
            self._roll_back_if_not_finite()

    def _backward(self, chosen: torch.Tensor, from_float: torch.Tensor | None, micro_batch: int) -> None:
        """Gather gradients and loss of this process's part of the batch ``chosen``.

        Args:
            chosen: indices of the images of the batch.
            from_float: where they read the float network, see :meth:`_draw_mixture`.
            micro_batch: images that pass the unit at once.
        """
        groups = self._groups(chosen)
        while len(self._gradients) < len(groups):
            self._gradients.append(FlatGradients([self._held.stand_in(tensor) for tensor in self._tuned()]))
        for gradients, members in zip(self._gradients, groups, strict=False):
            gradients.collect()
            for part in self._micro_batches(members, micro_batch):
                loss = self._loss(chosen[part] // self._processes, None if from_float is None else from_float[part])
                loss = loss * (len(part) / len(chosen))
                self.manual_backward(loss)
                gradients.loss.add_(loss.detach())
        first, *others = self._gradients[: len(groups)]
        for other in others:
            first.vector.add_(other.vector)
        first.attach()

    def _roll_back_if_not_finite(self) -> None:
        """Give the unit its best state back if tuning ended in NaN or infinity."""
        if self._best.finite(self.last_loss):
            return
        self._best.restore()
        self.last_loss = self._best.loss
        self.rolled_back.append(self.unit.name)
        _LOG.warning(
            "%s %s: the loss is no number, the unit is rolled back to its best state (loss %.4g); a lower "
            "relative_learning_rate or learning_rate under model.method.%s may mend it",
            self.title,
            self.unit.name,
            float(self._best.loss),
            self.title.replace(" ", ""),
        )

    def on_train_epoch_end(self) -> None:
        """Close the unit: its weights are final for this stage."""
        for group in self._optimizer().param_groups:
            for tensor in group["params"]:
                tensor.requires_grad_(False)
                tensor.grad = None
        self._gradients.clear()
        self._best.let_go()
        self._optimizer().state.clear()
        if self._processes > 1:
            require_equal(self.unit.module, self.unit.name)

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.optimizers().optimizer  # type: ignore[union-attr]

    @property
    def micro_batch(self) -> int:
        """Images that pass the unit at once."""
        whole = 16 if self.device.type == "cpu" else self.schedule.batch_size
        return self.schedule.micro_batch or whole

    def _groups(self, chosen: torch.Tensor) -> list[torch.Tensor]:
        """Places in ``chosen`` of the images that this process carries, in groups whose gradients are added up.

        One process forms the two groups that two processes would carry, so that the order of summation, and with it
        every bit of the result, is the same; except on an accelerator that takes the whole batch at once.
        """
        if self._processes > 1:
            return [torch.nonzero(chosen % self._processes == self._rank).flatten()]
        at_once = self.micro_batch >= len(chosen) and self.device.type != "cpu"
        if at_once or not self.shards_images:
            return [torch.arange(len(chosen))]
        halves = [torch.nonzero(chosen % 2 == half).flatten() for half in (0, 1)]
        return [half for half in halves if len(half)]

    def _micro_batches(self, members: torch.Tensor, micro_batch: int) -> tuple[torch.Tensor, ...]:
        """``members`` in parts of about equal size; none above a micro-batch that was asked for or that fits."""
        parts = len(members) / micro_batch
        # The usual size is no bound: a small part more for a few images would cost time and save no memory to speak of.
        bound = self.schedule.micro_batch is not None or micro_batch < self.micro_batch
        number = math.ceil(parts) if bound else round(parts)
        return members.chunk(max(1, number)) if len(members) else ()

    def _draw_mixture(self, count: int) -> torch.Tensor | None:
        """1 where ``count`` images read the float network, else 0, ``(count, …)``; None where inputs are not mixed."""
        if self.tuning.inputs != "mixed":
            return None
        return draw_mixture((count, *self.inputs.shape[1:]), self._generator)

    def _tuned(self) -> list[torch.Tensor]:
        return [tensor for group in self._optimizer().param_groups for tensor in group["params"]]

    def _loss(self, chosen: torch.Tensor, from_float: torch.Tensor | None) -> torch.Tensor:
        """Loss of the unit on the images ``chosen``, a vector of places in the caches of this process."""
        inputs = computable(self.inputs[chosen])
        if from_float is not None:
            # Exact: a weight of 0 or 1 gives one of the two.
            inputs = torch.lerp(inputs, computable(self.float_inputs[chosen]), from_float)
        output = self._run_unit(inputs.to(self.device))
        target = computable(self.targets[chosen]).to(self.device)
        variance = self._channel_variance
        if self._token_variance is not None:
            variance = self._token_variance[chosen].to(self.device)
        return reconstruction_loss(output, target, variance)
