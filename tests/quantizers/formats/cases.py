"""Each number format as it is used: what ``test_conformance*.py`` go through. A new one is a line in ``CASES``, and its
formula in ``slow.py``."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from isvit_lightning.quantizers import (
    Format,
    Granularity,
    Log,
    PerTensor,
    Quantizer,
    Search,
    ShiftedLog,
    Spec,
    Sulq,
    Uniform,
)
from isvit_lightning.quantizers.formats import AdaLog, AnchoredUniform, PowerOfTwoFactors, Tangent, TwinUniform
from isvit_lightning.search import Percentiles
from tests.helpers import GRANULARITIES, LOG_SEARCH, PUBLISHED_SULQ_SEARCH, SULQ_SEARCH
from tests.quantizers.formats.slow import (
    Slow,
    SlowAdaLog,
    SlowAnchoredUniform,
    SlowLog,
    SlowPowerOfTwoFactors,
    SlowShiftedLog,
    SlowSqrt2,
    SlowSulq,
    SlowTangent,
    SlowTwinUniform,
    SlowUniform,
)

GELU_SHIFT = 0.16997124


def real(samples: torch.Tensor) -> torch.Tensor:
    """Any tensor as it is."""
    return samples


def probabilities(samples: torch.Tensor) -> torch.Tensor:
    """Attention probabilities."""
    return (samples * 3).softmax(dim=-1)


def gelu(samples: torch.Tensor) -> torch.Tensor:
    """Outputs of a GELU."""
    return torch.nn.functional.gelu(samples * 2)


@dataclass(frozen=True)
class Case:
    """A format as it is used.

    Args:
        format: the format.
        search: how its grid is chosen.
        samples: makes values that the format is for from random ones.
        slow: the formula in pure Python, from the numbers of a grid.
        extra: codes beyond ``2**bits`` of a reproduction.
        fractional: whether values are powers with fractions, whose last bit depends on their place in a tensor: vectors
            and what is left of them are computed differently.
    """

    format: Format
    search: Search
    samples: Callable[[torch.Tensor], torch.Tensor]
    slow: Callable[..., Slow]
    extra: int = 0
    fractional: bool = False

    def quantizer(self, bits: int = 4, granularity: Granularity | None = None) -> Quantizer:
        return Quantizer(Spec(self.format, bits, granularity or PerTensor()), self.search)


CASES = {
    "uniform": Case(Uniform(), Percentiles(), real, SlowUniform),
    "uniform_without_zero": Case(Uniform(), Percentiles(include_zero=False), real, SlowUniform),
    "log2": Case(Log(1), LOG_SEARCH, probabilities, SlowLog),
    "log_sqrt2": Case(Log(2), LOG_SEARCH, probabilities, SlowSqrt2, fractional=True),
    "sulq": Case(Sulq(steps_per_octave=1), SULQ_SEARCH, probabilities, SlowSulq),
    "sulq_fine": Case(
        Sulq(steps_per_octave=256), SULQ_SEARCH, probabilities, partial(SlowSulq, steps_per_octave=256), fractional=True
    ),
    "sulq_published": Case(
        Sulq(extra_codes=1, steps_per_octave=1), PUBLISHED_SULQ_SEARCH, probabilities, SlowSulq, extra=1
    ),
    "adalog": Case(AdaLog(), Percentiles((1.0,)), probabilities, SlowAdaLog, fractional=True),
    "adalog_gelu": Case(AdaLog(GELU_SHIFT), Percentiles((0.999, 1.0)), gelu, SlowAdaLog, fractional=True),
    "shifted_log": Case(ShiftedLog(), Percentiles((0.999, 1.0)), gelu, SlowShiftedLog),
    "shifted_log_of_any_tensor": Case(ShiftedLog(), Percentiles((0.999, 1.0)), real, SlowShiftedLog),
    "twin_uniform": Case(TwinUniform(), Percentiles((1.0,)), probabilities, SlowTwinUniform),
    "twin_uniform_gelu": Case(
        TwinUniform(signed=True), Percentiles((0.999, 1.0)), gelu, partial(SlowTwinUniform, signed=True)
    ),
    "tangent": Case(Tangent(), Percentiles((1.0,)), probabilities, SlowTangent, fractional=True),
    "anchored_uniform": Case(AnchoredUniform(), Percentiles((1.0,)), real, SlowAnchoredUniform),
    "power_of_two_factors": Case(PowerOfTwoFactors(), Percentiles((1.0,)), real, SlowPowerOfTwoFactors),
}
"""Each format, its search, the values that it is for, its formula."""

EVERY = pytest.mark.parametrize("name", CASES)
BITS = pytest.mark.parametrize("bits", range(2, 9))
EVERY_GRANULARITY = pytest.mark.parametrize("granularity", GRANULARITIES)


def build(name: str, bits: int = 4, granularity: str = "per_tensor") -> tuple[Quantizer, torch.Tensor]:
    """An uncalibrated quantizer and samples for it."""
    chosen, shape = GRANULARITIES[granularity]
    return CASES[name].quantizer(bits, chosen), CASES[name].samples(torch.randn(shape) + 0.3)


def calibrated(name: str, bits: int = 4, granularity: str = "per_tensor") -> tuple[Quantizer, torch.Tensor]:
    """A quantizer in float64, calibrated on the samples."""
    quantizer, samples = build(name, bits, granularity)
    quantizer.double().calibrate(samples.double())
    return quantizer, samples.double()


def dense(name: str, samples: torch.Tensor) -> torch.Tensor:
    """Many values from below the smallest of the ``samples`` to above the largest, and close to zero."""
    low, high = float(samples.min()), float(samples.max())
    line = torch.linspace(low - 1, high + 1, 30_000, dtype=torch.float64)
    tiny = torch.logspace(-80, 2, 30_000, dtype=torch.float64)
    values = torch.cat([line, tiny, tiny - GELU_SHIFT])
    return values[values >= 0] if CASES[name].samples is probabilities else values


def slow_of(name: str, quantizer: Quantizer, index: int = 0) -> Slow:
    """The pure Python form of one grid of ``quantizer``."""
    return CASES[name].slow(*(number.flatten()[index].item() for number in quantizer.grid))


def assert_same(name: str, values: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal values, bit for bit wherever the format allows that in two layouts of a tensor."""
    if CASES[name].fractional:
        last = 4 * torch.finfo(values.dtype).eps
        # The shift of the largest values leaves the last bit of their base.
        torch.testing.assert_close(values, expected, rtol=last, atol=last * float(expected.abs().max()))
    else:
        assert torch.equal(values, expected)


@st.composite
def drawn_with(draw: st.DrawFn, name: str) -> tuple[Quantizer, torch.Tensor]:
    """A calibrated quantizer of any width and granularity, and a tensor for it that also leaves its range."""
    granularity, shape = GRANULARITIES[draw(st.sampled_from(sorted(GRANULARITIES)))]
    quantizer = CASES[name].quantizer(draw(st.integers(2, 8)), granularity)
    samples = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1))))
    if CASES[name].samples is real:
        samples = (samples + draw(st.floats(-2, 2))) * 10.0 ** draw(st.integers(-6, 4))
        special = st.floats(-1e6, 1e6, width=32)
    else:
        samples = CASES[name].samples(samples * draw(st.sampled_from([0.03, 0.3, 1.5, 10.0])))
        special = st.floats(0, 1, width=32)
    quantizer.calibrate(samples)
    tensor = samples.clone()
    flat = tensor.view(-1)
    # Far outside, tiny, zero, and whatever else hypothesis comes up with.
    flat[0], flat[1], flat[2] = 3 * samples.max(), 3 * samples.min(), 0.0
    for index, value in enumerate(draw(st.lists(special, max_size=6))):
        flat[3 + index] = value
    return quantizer, tensor


FEW = settings(max_examples=60, deadline=None, derandomize=True, database=None)
