"""The choices that make a method: what is quantized how, and what is tuned how."""

import math
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from isvit_lightning.errors import IsvitError

SoftmaxQuantizer = Literal["sulq", "uniform", "log2", "log_sqrt2"]
EtaCandidates = Literal["powers_of_two", "published"]
StageInputs = Literal["float", "quantized", "mixed"]
Recalibration = Literal["never", "stage", "unit"]
Loss = Literal["squared", "normalized"]
RangeError = Literal["squared", "normalized"]
Reconstructed = Literal["backbone", "all"]
Part = Literal["neck", "rpn", "box_head", "mask_head"]


def _require_types(choices: Any, section: str) -> None:
    """Refuse values of another type, which Python itself lets through; they may come from a file.

    Raises:
        IsvitError: a field of the dataclass ``choices`` holds what its annotation does not allow.
    """
    hints = get_type_hints(type(choices))
    for name in (entry.name for entry in fields(choices)):
        value, kind = getattr(choices, name), hints[name]
        expected = _mismatch(value, kind)
        if expected:
            raise IsvitError(f"{section}.{name} is {value!r}, expected {expected}: change it there.")


def _is_number(value: Any, kind: type) -> bool:
    """Whether ``value`` is a number of this kind; Python counts True as one."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _mismatch(value: Any, kind: Any) -> str:
    """What ``kind`` wants instead of ``value``; empty where the value is fine."""
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(get_args(kind))}"
    if kind is int:
        return "" if _is_number(value, Integral) else "a whole number"
    if kind is float:
        return "" if _is_number(value, Real) and math.isfinite(value) else "a finite number"
    if get_origin(kind) is dict:
        return "" if isinstance(value, dict) else "a mapping"
    if get_origin(kind) is UnionType:
        rest, _none = get_args(kind)
        mismatch = _mismatch(value, rest)
        return "" if value is None or not mismatch else f"{mismatch} or null"
    words = {bool: "true or false", str: "a text"}
    return "" if isinstance(value, kind) else words.get(kind, f"the choices of {kind.__name__}")


def _require_at_least(section: str, **least: tuple[int, int]) -> None:
    for name, (value, bound) in least.items():
        if value < bound:
            raise IsvitError(f"{section}.{name} is {value}, expected {bound} or more: change it there.")


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
        _require_types(self, "model.bits")
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
        relative_learning_rate: initial rate of Adam relative to the root mean square of each weight; a bias takes the
            rate of its weight. It falls to zero along a cosine. Wide networks have small weights, and Adam's steps do
            not know how large a weight is.
        learning_rate: the same rate for all weights and biases instead, as published; null for relative ones.
        inputs: what the unit reads while it is tuned: the float network's activations, those of the quantized network
            so far, or an element-wise random mixture of both, half and half.
        recalibrate: when the ranges of activations are chosen anew: never, once before the stage, or before each unit
            on the inputs that the unit is tuned with.
        loss: squared error as published, or with each token's error divided by the variance of its target, which is
            how the next LayerNorm will see it: one token of enormous activations then does not outweigh all others.
            Where channels are different quantities, as in the box heads of a detector, by that of its channel.
        range_learning_rate: rate of Adam for the scales of the activations (straight-through gradient of the step
            size, LSQ, arXiv 1902.08153, without its gradient scale), relative to each scale; 0 keeps them fixed.

    Raises:
        IsvitError: a rate is out of its range, or a value is of another type.
    """

    enabled: bool = True
    relative_learning_rate: float = 1.2e-2
    learning_rate: float | None = None
    inputs: StageInputs = "float"
    recalibrate: Recalibration = "never"
    loss: Loss = "normalized"
    range_learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        _require_types(self, "A stage of model.method")
        for name in ("relative_learning_rate", "learning_rate"):
            rate = getattr(self, name)
            if rate is not None and rate <= 0:
                raise IsvitError(f"model.method has a {name} of {rate}, expected a positive one: change it there.")
        if self.range_learning_rate < 0:
            raise IsvitError(
                f"model.method has a range_learning_rate of {self.range_learning_rate}, expected 0 or a positive one: "
                "change it there."
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
        range_error: what the range of a linear layer's per-tensor input minimizes: the squared error as published, or
            the same with each token's error divided by its variance, so that one token of enormous activations does not
            take all codes.
        reconstruct: what is tuned: the backbone as published, or neck and heads of a detector too. All of a classifier
            is backbone.
        stage1: tuning with float weights and per-channel post-LayerNorm activations.
        stage3: tuning with quantized weights.

    Raises:
        IsvitError: a number is out of its range, or a value is of another type.
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
    range_error: RangeError = "normalized"
    reconstruct: Reconstructed = "backbone"
    stage1: Tuning = field(default_factory=lambda: Tuning(inputs="quantized"))
    stage3: Tuning = field(default_factory=lambda: Tuning(inputs="mixed"))

    def __post_init__(self) -> None:
        _require_types(self, "model.method")
        _require_at_least(
            "model.method", extra_softmax_codes=(self.extra_softmax_codes, 0), range_images=(self.range_images, 1)
        )


def round_to_nearest() -> Method:
    """Ranges only: per-tensor activations, uniform softmax, no stage 2, no tuning."""
    off = Tuning(enabled=False)
    return Method(
        name="round_to_nearest",
        softmax="uniform",
        reparameterize=False,
        range_error="squared",
        stage1=off,
        stage3=off,
    )


def repq() -> Method:
    """RepQ-ViT's way on this core: log-sqrt2 softmax and stage 2, no tuning (arXiv 2212.08254)."""
    off = Tuning(enabled=False)
    return Method(
        name="repq",
        softmax="log_sqrt2",
        reparameterize_reductions=True,
        range_error="squared",
        stage1=off,
        stage3=off,
    )
