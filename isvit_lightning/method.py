"""The choices that make a method: what is quantized how, and what is tuned how."""

from dataclasses import dataclass, field
from typing import Literal

from isvit_lightning.errors import IsvitError

SoftmaxQuantizer = Literal["sulq", "uniform", "log2", "log_sqrt2"]
EtaCandidates = Literal["powers_of_two", "published"]
StageInputs = Literal["float", "quantized", "mixed"]
Recalibration = Literal["never", "stage", "unit"]
Loss = Literal["squared", "normalized"]
Part = Literal["neck", "rpn", "box_head", "mask_head"]


@dataclass(frozen=True)
class Bits:
    """Width of the codes.

    Args:
        weight: bits of every weight, 2 to 8.
        activation: bits of every input of a matrix product, 2 to 8.
        parts: bits of weights and inputs in parts of a detector that are to be wider or narrower than its backbone, for
            example {box_head: 8}; neck, rpn, box_head or mask_head. A classifier has none of them.

    Raises:
        IsvitError: a width outside 2 to 8.
    """

    weight: int = 4
    activation: int = 4
    parts: dict[Part, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = [(f"parts.{part}", value) for part, value in self.parts.items()]
        for name, value in (("weight", self.weight), ("activation", self.activation), *parts):
            if not 2 <= value <= 8:
                raise IsvitError(f"model.bits.{name} is {value}, expected 2 to 8: change it there.")

    def of(self, part: Part) -> "Bits":
        """Widths of one part of a detector."""
        return Bits(self.parts[part], self.parts[part]) if part in self.parts else Bits(self.weight, self.activation)


@dataclass(frozen=True)
class Tuning:
    """How one stage tunes a unit.

    Args:
        enabled: false leaves the weights as they are (the stage then only calibrates).
        learning_rate: initial rate of Adam; it falls to zero along a cosine.
        inputs: what the unit reads while it is tuned: the float network's activations, those of the quantized network
            so far, or an element-wise random mixture of both, half and half.
        recalibrate: when the ranges of activations are chosen anew: never, once before the stage, or before each unit
            on the inputs that the unit is tuned with.
        loss: squared error as published, or with each token's error divided by the variance of its target, which is
            how the next LayerNorm will see it: one token with enormous activations then does not outweigh all others.
        range_learning_rate: rate of Adam for the scales of the activations (straight-through gradient of the step
            size, LSQ, arXiv 1902.08153, without its gradient scale), relative to each scale; 0 keeps them fixed.
    """

    enabled: bool = True
    learning_rate: float = 2e-4
    inputs: StageInputs = "float"
    recalibrate: Recalibration = "never"
    loss: Loss = "squared"
    range_learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.range_learning_rate < 0:
            raise IsvitError(
                f"Learning rates are {self.learning_rate} and {self.range_learning_rate}, expected a positive one and "
                "one of at least 0: change learning_rate or range_learning_rate under model.method."
            )


@dataclass(frozen=True)
class Method:
    """A post-training quantization method on the shared core.

    Args:
        name: what results call it.
        softmax: quantizer of the attention probabilities.
        eta_candidates: list in which SULQ looks for its shift: powers of two (zero is exact) or the published one.
        extra_softmax_codes: codes that SULQ spends beyond ``2**bits``; 1 in the published code.
        clamp_zero_points: keep every zero point in ``[0, 2**bits - 1]``. The published code does not.
        round_zero_point: round the mean zero point of stage 2, which makes the fold exact. The published code does not.
        reparameterize: run stage 2; without it post-LayerNorm activations are per tensor from the start.
        statistic: what the per-tensor scale and zero point are of the per-channel ones.
        reparameterize_reductions: treat Swin's patch-merging norm and reduction as a pair of stage 2 too.
        range_images: calibration images on which activation ranges are chosen.
        stage1: tuning with float weights and per-channel post-LayerNorm activations.
        stage3: tuning with quantized weights.
    """

    name: str = "isvit"
    softmax: SoftmaxQuantizer = "sulq"
    eta_candidates: EtaCandidates = "powers_of_two"
    extra_softmax_codes: int = 0
    clamp_zero_points: bool = True
    round_zero_point: bool = True
    reparameterize: bool = True
    statistic: Literal["mean", "median"] = "mean"
    reparameterize_reductions: bool = False
    range_images: int = 64
    stage1: Tuning = field(default_factory=Tuning)
    stage3: Tuning = field(default_factory=lambda: Tuning(inputs="mixed"))


def round_to_nearest() -> Method:
    """Ranges only: per-tensor activations, uniform softmax, no stage 2, no tuning."""
    off = Tuning(enabled=False)
    return Method(name="round_to_nearest", softmax="uniform", reparameterize=False, stage1=off, stage3=off)


def repq() -> Method:
    """RepQ-ViT's way on this core: log-sqrt2 softmax and stage 2, no tuning (arXiv 2212.08254)."""
    off = Tuning(enabled=False)
    return Method(name="repq", softmax="log_sqrt2", reparameterize_reductions=True, stage1=off, stage3=off)
