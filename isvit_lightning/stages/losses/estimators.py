"""Estimators of the curvature of the network's divergence by a unit's outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.stages.halving import MicroBatch
from isvit_lightning.stages.losses.estimator import Curvature, Estimator, Statistics
from isvit_lightning.stages.losses.means import groups_of
from isvit_lightning.stages.losses.probe import Probe
from isvit_lightning.system.processes import broadcast_tensors


@dataclass(frozen=True)
class SquaredGradient(Estimator):
    """The diagonal of the Fisher information, ``Σᵢ Dᵢ² (|gᵢ| + floor)²`` (BRECQ, arXiv 2102.05426, eq. 10).

    ``D`` is the error of the outputs, ``g`` the gradient of an image's divergence at the quantized unit's outputs.

    Args:
        floor: added to each size of a gradient; the published code adds 1, beside which its gradients are nothing.
        pooled: whether the mean over images weighs the errors of all of them; each has weights of its own otherwise, as
            published, which are measured on all images.

    Raises:
        IsvitError: the floor is negative.
    """

    floor: float = 0.0
    pooled: bool = False

    def __post_init__(self) -> None:
        if not self.floor >= 0:
            raise IsvitError(
                f"SquaredGradient has a floor of {self.floor}, expected 0 or more: change it under model.recipe.steps."
            )

    @override
    def measure(self, probe: Probe) -> Statistics:
        if self.pooled:
            return probe.means(lambda rows: [self._weights(probe, rows)])
        around, rows = probe.around, torch.arange(len(probe.around.targets))

        def gather(size: int) -> torch.Tensor:
            parts = [part for group in groups_of(around, rows) for part in torch.split(group, size)]
            found = torch.cat([self._weights(probe, part).cpu() for part in parts])
            return found[torch.cat(parts).argsort()]

        return [MicroBatch(around.chunk).retry(gather, around.unit.name, around.device)]

    @override
    def curvature(self, measured: Sequence[Statistics]) -> Curvature:
        ((weights,),) = measured
        if self.pooled:
            return lambda errors, _places: [_sums(errors.square() * weights)]
        return lambda errors, places: [_sums(errors.square() * weights[places].to(errors))]

    def _weights(self, probe: Probe, rows: torch.Tensor) -> torch.Tensor:
        return (probe.errors(rows)[1].abs() + self.floor).square()


@dataclass(frozen=True)
class FiniteDifference(Estimator):
    """Difference of gradients around the float outputs, ``Σᵢ Dᵢ² · mean |H v|ᵢ`` (APHQ-ViT, arXiv 2504.02508).

    ``H v`` is ``(g(O + ε v) - g(O - ε v)) / 2ε``, its sizes are averaged over images. With ones for ``v``, as
    published, they are the sums of the rows of the Hessian. A network whose residual stream is read by LayerNorm alone
    does not see ones, and those sums are rounding; with random signs they are about the norms of the rows.

    Args:
        step: ``ε``, relative to the root mean square of an image's outputs; published: 1e-6, absolute.
        direction: ``v``: ones, or random signs, drawn for each image.
        seed: of the signs.

    Raises:
        IsvitError: the step is not positive.
    """

    step: float = 1e-2
    direction: Literal["ones", "signs"] = "ones"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise IsvitError(
                f"FiniteDifference has a step of {self.step}, expected a positive one: change it under "
                "model.recipe.steps."
            )

    @override
    def measure(self, probe: Probe) -> Statistics:
        def sizes(rows: torch.Tensor) -> Statistics:
            outputs = probe.wanted(rows)
            tall = (len(rows), *(1 for _ in outputs.shape[1:]))
            size = self.step * outputs.square().flatten(1).mean(dim=1).sqrt().view(tall)
            move = size * self._direction(probe.around.numbers(rows), outputs)
            above, below = probe.gradient(outputs, outputs + move), probe.gradient(outputs, outputs - move)
            return [((above - below) / (2 * size)).abs()]

        return probe.means(sizes)

    @override
    def curvature(self, measured: Sequence[Statistics]) -> Curvature:
        ((weights,),) = measured
        return lambda errors, _places: [_sums(errors.square() * weights)]

    def _direction(self, numbers: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        if self.direction == "ones":
            return torch.ones_like(outputs)
        # By the number of the image, so that neither chunks nor processes change a draw.
        generators = [torch.Generator().manual_seed(self.seed * 1_000_003 + number) for number in numbers.tolist()]
        drawn = [torch.randint(2, outputs.shape[1:], generator=generator) for generator in generators]
        return (2 * torch.stack(drawn) - 1).to(outputs)


@dataclass(frozen=True)
class LeastSquares(Estimator):
    """The Hessian that best explains the gradients of all images by their errors (LS-ViT, CVPR 2026).

    The loss is ``½ Σᵢ hᵢ Dᵢ² + ½ (uᵀ D)²``. The diagonal is ``hᵢ = Σₙ gᵢ dᵢ / Σₙ dᵢ²``, where ``d`` are the errors and
    ``g`` the gradients at the quantized unit's outputs before it is tuned; where it is negative, it is taken as 0. The
    rank-one part is ``u = Σₙ g √(dᵀ g) / Σₙ dᵀ g`` over the images with ``dᵀ g > 0``. A root has either sign: each
    image's part is turned to the side of the first image's gradient, lest parts cancel out.

    Args:
        rank_one: whether the rank-one part is added to the diagonal.
    """

    rank_one: bool = True

    @override
    def measure(self, probe: Probe) -> Statistics:
        first = probe.errors(torch.tensor([0]))[1]
        if probe.around.processes > 1:
            broadcast_tensors([first])

        def sums(rows: torch.Tensor) -> Statistics:
            errors, gradients = probe.errors(rows)
            product = _sums(errors * gradients).clamp_min(0)
            factor = product.sqrt() * torch.where(_sums(gradients * first) < 0, -1.0, 1.0)
            tall = factor.view(-1, *(1 for _ in errors.shape[1:]))
            return [gradients * errors, errors.square(), gradients * tall, product]

        return probe.means(sums)

    @override
    def curvature(self, measured: Sequence[Statistics]) -> Curvature:
        ((products, squares, directions, product),) = measured
        least = torch.finfo(squares.dtype).tiny
        diagonal = (products / squares.clamp_min(least)).clamp_min(0)
        direction = directions / product.clamp_min(least)

        def terms(errors: torch.Tensor, _places: torch.Tensor) -> Statistics:
            total = _sums(errors.square() * diagonal)
            return [(total + _sums(errors * direction).square() if self.rank_one else total) / 2]

        return terms


@dataclass(frozen=True)
class DiagonalPlusLowRank(Estimator):
    """A diagonal and a low-rank part of the Fisher information (FIMA-Q, arXiv 2506.11543).

    The gradient is the Fisher information times the error. Each look ``j`` gives the mean sizes over images of errors,
    ``eⱼ``, and of gradients, ``γⱼ``, which are the rows of ``E`` and ``Γ``. The two terms, of equal weight, are
    ``(|D| Γᵀ) (E Eᵀ)⁻¹ (|D| Γᵀ)ᵀ`` and ``Σᵢ Dᵢ² · mean γᵢ``.

    Args:
        snapshots: how many times errors and gradients are measured, the rank; the unit as it is tuned by then gives
            the later ones.
        damping: added to the diagonal of ``E Eᵀ``, relative to its mean: errors of two looks may be nearly alike;
            published: 0.

    Raises:
        IsvitError: a number is out of its range.
    """

    snapshots: int = 5
    damping: float = 1e-3

    def __post_init__(self) -> None:
        if not (self.snapshots >= 1 and self.damping >= 0):
            raise IsvitError(
                f"DiagonalPlusLowRank has {self}, expected 1 or more snapshots and a damping of 0 or more: change it "
                "under model.recipe.steps."
            )

    @property
    @override
    def looks(self) -> int:
        return self.snapshots

    @override
    def measure(self, probe: Probe) -> Statistics:
        return probe.means(lambda rows: [tensor.abs() for tensor in probe.errors(rows)])

    @override
    def curvature(self, measured: Sequence[Statistics]) -> Curvature:
        errors_seen, gradients_seen = (torch.stack([look[place].flatten() for look in measured]) for place in (0, 1))
        rows = errors_seen.cpu().double()
        gram = rows @ rows.T
        damped = gram + self.damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        inverse = torch.linalg.pinv(damped, hermitian=True).to(errors_seen)
        diagonal = gradients_seen.mean(dim=0)

        def terms(errors: torch.Tensor, _places: torch.Tensor) -> Statistics:
            flat = errors.flatten(1)
            along = flat.abs() @ gradients_seen.T
            return [((along @ inverse) * along).sum(dim=1), (flat.square() * diagonal).sum(dim=1)]

        return terms


def _sums(tensor: torch.Tensor) -> torch.Tensor:
    """Sums ``(batch,)`` of all that belongs to an image."""
    return tensor.flatten(1).sum(dim=1)
