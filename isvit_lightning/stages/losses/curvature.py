"""The loss that weighs errors by the curvature of the network's divergence."""

import math
from dataclasses import dataclass, field

from typing_extensions import override

from isvit_lightning.errors import IsvitError
from isvit_lightning.stages.losses.divergence import divergence
from isvit_lightning.stages.losses.estimator import Estimator, Statistics
from isvit_lightning.stages.losses.estimators import LeastSquares
from isvit_lightning.stages.losses.loss import Loss, Surroundings, UnitLoss
from isvit_lightning.stages.losses.probe import Probe
from isvit_lightning.stages.losses.relative import RelativeLoss, Terms


@dataclass(frozen=True)
class CurvatureError(Loss):
    """Square of the errors, weighted by how much the divergence of the network's probabilities bends along them.

    Gradients pass the float network behind the unit. The outputs of the last unit are the logits, of which the
    divergence itself is the loss.

    Args:
        estimator: how the curvature is estimated.
        temperature: what logits are divided by where curvature is measured.
        images: calibration images that it is measured on.
        initial: what each term is worth before the unit is tuned, which matters beside a penalty on roundings.

    Raises:
        IsvitError: a number is out of its range.
    """

    estimator: Estimator = field(default_factory=LeastSquares)
    temperature: float = 1.0
    images: int = 128
    initial: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.temperature < math.inf and self.images >= 1 and 0 < self.initial < math.inf):
            raise IsvitError(
                f"CurvatureError has {self}, expected a positive temperature and initial, and 1 or more images: change "
                "loss under model.recipe.steps."
            )

    @override
    def prepare(self, around: Surroundings) -> UnitLoss:
        suffix = around.required_suffix(type(self).__name__)
        if not suffix.units:
            return RelativeLoss(
                around, self.images, self.initial, lambda logits, wanted, _places: [divergence(wanted, logits)]
            )
        return _CurvatureLoss(self, Probe(around, suffix, self.temperature, self.images))


class _CurvatureLoss(RelativeLoss):
    """The loss of one unit, which looks at it again where its estimator wants to.

    Args:
        choice: estimator and numbers.
        probe: of the unit.
    """

    def __init__(self, choice: CurvatureError, probe: Probe) -> None:
        self._estimator, self._probe = choice.estimator, probe
        self._measured: list[Statistics] = []
        super().__init__(probe.around, choice.images, choice.initial, self._look())

    @override
    def is_due(self, step: int, steps: int) -> bool:
        looks = self._estimator.looks
        return step > 0 and len(self._measured) < looks and step % max(1, steps // looks) == 0

    @override
    def refresh(self) -> None:
        self.take(self._look())

    def _look(self) -> Terms:
        """Terms by what is measured now and was before."""
        self._measured.append(self._estimator.measure(self._probe))
        curvature = self._estimator.curvature(self._measured)
        return lambda outputs, wanted, places: curvature(outputs - wanted, places)
