"""Logarithmic formats: a slow search, zero, constants, the fineness of the grid."""

import math

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import Log, PerChannel, Quantizer
from isvit_lightning.search.percentiles import ACTIVATION_PERCENTILES
from tests.helpers import quantizer_of
from tests.quantizers.formats.slow import SlowLog, clamped

STEPS = pytest.mark.parametrize("steps_per_octave", [1, 2])


def with_scale(bits: int, steps_per_octave: int, scale: float) -> Quantizer:
    """Grid below ``scale``, in float64."""
    quantizer = quantizer_of(Log(steps_per_octave), bits).double()
    quantizer.scale.fill_(scale)
    quantizer.refresh()
    return quantizer


@STEPS
def test_zero_takes_the_last_code(steps_per_octave: int) -> None:
    for bits in range(2, 9):
        quantizer = with_scale(bits, steps_per_octave, 1.0).float()
        zero = torch.zeros(1)
        assert quantizer.encode(zero).item() == 2**bits - 1
        assert quantizer(zero).item() == pytest.approx(2.0 ** (-(2**bits - 1) / steps_per_octave), rel=1e-6, abs=1e-38)


@STEPS
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_search_against_a_slow_loop(bits: int, steps_per_octave: int) -> None:
    samples = (torch.randn(3, 5000, dtype=torch.float64) * 4).softmax(dim=-1)
    samples[1] = torch.rand(5000)
    quantizer = quantizer_of(Log(steps_per_octave), bits, PerChannel(3, axis=-2)).double()
    quantizer.calibrate(samples)
    for index in range(3):
        group = samples[index].tolist()
        descending = sorted(group, reverse=True)
        best = (math.inf, 0.0)
        for percentile in ACTIVATION_PERCENTILES:
            scale = descending[int((1 - percentile) * (len(group) - 1))]
            slow = SlowLog(scale, steps_per_octave)
            error = sum((slow.value(clamped(slow.code(x), 2**bits)) - x) ** 2 for x in group)
            if error < best[0]:
                best = (error, scale)
        assert quantizer.scale[index].item() == pytest.approx(best[1], rel=1e-14)


@STEPS
def test_zeros_get_scale_one(steps_per_octave: int) -> None:
    quantizer = quantizer_of(Log(steps_per_octave))
    quantizer.calibrate(torch.zeros(2, 10))
    assert quantizer.scale.item() == 1.0
    assert bool(quantizer(torch.zeros(3)).isfinite().all())


@STEPS
@pytest.mark.parametrize("value", [1e-6, 0.3, 1.0, 50.0])
def test_constant_is_exact(steps_per_octave: int, value: float) -> None:
    quantizer = quantizer_of(Log(steps_per_octave))
    samples = torch.full((2, 10), value)
    quantizer.calibrate(samples)
    assert torch.equal(quantizer(samples), samples)


def test_sqrt2_grid_is_twice_as_fine() -> None:
    ratio = with_scale(4, 2, 1.0).decode(torch.tensor([0, 1, 2]))
    assert ratio.tolist() == pytest.approx([1.0, 2**-0.5, 0.5])


@pytest.mark.parametrize("steps_per_octave", [0, -1])
def test_fewer_than_one_step_is_refused(steps_per_octave: int) -> None:
    with pytest.raises(IsvitError, match=rf"steps_per_octave {steps_per_octave}, expected 1 or more.*placement"):
        Log(steps_per_octave)
