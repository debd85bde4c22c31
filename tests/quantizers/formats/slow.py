"""Every format in pure Python, one number at a time; ``round`` is half to even, as torch's."""

import math
from dataclasses import dataclass
from typing import Protocol


class Slow(Protocol):
    """A format with the numbers of one grid: what the tests of all formats compare with."""

    def code(self, x: float) -> float:
        """Code of a value, not yet kept within the codes that there are; infinite where it is beyond all of them."""

    def value(self, code: int) -> float:
        """Grid value of a code."""

    def slope(self, x: float, value: float) -> float:
        """Closed form of the straight-through gradient within the range."""


@dataclass(frozen=True)
class SlowUniform:
    """Equation 7 of I&S-ViT (arXiv 2311.10126)."""

    scale: float
    zero_point: float

    def code(self, x: float) -> float:
        return round(x / self.scale) + self.zero_point

    def value(self, code: int) -> float:
        return (code - self.zero_point) * self.scale

    def slope(self, x: float, value: float) -> float:
        return 1.0


@dataclass(frozen=True)
class SlowLog:
    """Equation 10."""

    scale: float
    steps_per_octave: int = 1

    def code(self, x: float) -> float:
        return math.inf if x == 0 else round(-self.steps_per_octave * math.log2(x / self.scale))

    def value(self, code: int) -> float:
        return self.scale * 2.0 ** (-code / self.steps_per_octave)

    def slope(self, x: float, value: float) -> float:
        return value / x


@dataclass(frozen=True)
class SlowSqrt2(SlowLog):
    """Equation 13 of RepQ-ViT (arXiv 2212.08254)."""

    steps_per_octave: int = 2


@dataclass(frozen=True)
class SlowSulq:
    """Equations 13 and 14 of I&S-ViT; exponents of 1 step per octave as there, or of more."""

    eta: float
    offset: float
    step: float
    steps_per_octave: int = 1

    def code(self, x: float) -> float:
        return round((math.log2(x + self.eta) - self.offset) / self.step)

    def exponent(self, code: int) -> float:
        return round((code * self.step + self.offset) * self.steps_per_octave) / self.steps_per_octave

    def value(self, code: int) -> float:
        return 2.0 ** self.exponent(code) - self.eta

    def slope(self, x: float, value: float) -> float:
        return (value + self.eta) / (x + self.eta)


@dataclass(frozen=True)
class SlowAdaLog:
    """Section 3 of AdaLog (arXiv 2407.12951), with a shift; what lies below it gets the last code."""

    scale: float
    step: float
    shift: float

    def code(self, x: float) -> float:
        return math.inf if x + self.shift <= 0 else round(-math.log2((x + self.shift) / self.scale) / self.step)

    def value(self, code: int) -> float:
        return self.scale * 2.0 ** (-code * self.step) - self.shift

    def slope(self, x: float, value: float) -> float:
        return (value + self.shift) / (x + self.shift)


@dataclass(frozen=True)
class SlowShiftedLog(SlowAdaLog):
    """The same with powers that are whole 255ths."""

    def value(self, code: int) -> float:
        return round(255 * 2.0 ** (-code * self.step)) * (self.scale / 255) - self.shift


@dataclass(frozen=True)
class SlowTwinUniform:
    """Twin uniform quantization of PTQ4ViT (arXiv 2111.12293), the coarse range beginning where the fine one ends."""

    fine: float
    coarse: float
    middle: float
    signed: bool = False

    @property
    def split(self) -> float:
        return 0.0 if self.signed else self.middle * self.fine

    def code(self, x: float) -> float:
        return round((x - self.split) / (self.fine if x < self.split else self.coarse)) + self.middle

    def value(self, code: int) -> float:
        return (code - self.middle) * (self.fine if code < self.middle else self.coarse) + self.split

    def slope(self, x: float, value: float) -> float:
        return 1.0


@dataclass(frozen=True)
class SlowTangent:
    """Uniform in the angle whose tangent is the value."""

    scale: float
    step: float

    def code(self, x: float) -> float:
        return round(math.atan(x / self.scale) / self.step)

    def value(self, code: int) -> float:
        return self.scale * math.tan(code * self.step)

    def slope(self, x: float, value: float) -> float:
        # The cosines of the angles of value and sample.
        return (math.cos(math.atan(x / self.scale)) / math.cos(math.atan(value / self.scale))) ** 2


@dataclass(frozen=True)
class SlowAnchoredUniform:
    """Uniform, counted from the largest value."""

    scale: float
    top: float

    def code(self, x: float) -> float:
        return round((self.top - x) / self.scale)

    def value(self, code: int) -> float:
        return self.top - code * self.scale

    def slope(self, x: float, value: float) -> float:
        return 1.0


@dataclass(frozen=True)
class SlowPowerOfTwoFactors:
    """Power-of-two factors of FQ-ViT (arXiv 2111.13824)."""

    scale: float
    zero_point: float
    exponent: float

    def code(self, x: float) -> float:
        return round(x / (self.scale * 2**self.exponent)) + self.zero_point

    def value(self, code: int) -> float:
        return (code - self.zero_point) * self.scale * 2**self.exponent

    def slope(self, x: float, value: float) -> float:
        return 1.0


def clamped(code: float, n_codes: int) -> int:
    """``code`` within ``[0, n_codes)``."""
    return int(min(max(code, 0), n_codes - 1))
