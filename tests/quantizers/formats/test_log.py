"""Logarithmic quantizers against pure Python, a slow search and the closed-form gradient."""

import math

import pytest
import torch

from isvit_lightning.quantizers import LogQuantizer, PerChannel
from isvit_lightning.quantizers.search import ACTIVATION_PERCENTILES

STEPS = pytest.mark.parametrize("steps_per_octave", [1, 2])


def with_scale(bits: int, steps_per_octave: int, scale: float) -> LogQuantizer:
    """Grid below ``scale``, in float64."""
    quantizer = LogQuantizer(bits, steps_per_octave=steps_per_octave).double()
    quantizer.scale.fill_(scale)
    quantizer.refresh()
    return quantizer


def slow_code(value: float, scale: float, steps_per_octave: int, bits: int) -> int:
    """Equation 10 in pure Python."""
    if value == 0:
        return 2**bits - 1
    return min(max(round(-steps_per_octave * math.log2(value / scale)), 0), 2**bits - 1)


@STEPS
@pytest.mark.parametrize("bits", range(2, 9))
def test_against_pure_python(bits: int, steps_per_octave: int) -> None:
    scale = 0.7
    quantizer = with_scale(bits, steps_per_octave, scale)
    samples = [k / 499 for k in range(500)] + [1e-12, 1e-30]
    codes = [slow_code(value, scale, steps_per_octave, bits) for value in samples]
    tensor = torch.tensor(samples, dtype=torch.float64)
    assert quantizer.encode(tensor).tolist() == codes
    expected = [scale * 2.0 ** (-code / steps_per_octave) for code in codes]
    assert quantizer(tensor).tolist() == pytest.approx(expected, rel=1e-14)
    assert quantizer.decode(torch.tensor(codes)).tolist() == pytest.approx(expected, rel=1e-14)


@STEPS
def test_zero_takes_the_last_code(steps_per_octave: int) -> None:
    for bits in range(2, 9):
        quantizer = with_scale(bits, steps_per_octave, 1.0).float()
        zero = torch.zeros(1)
        assert quantizer.encode(zero).item() == 2**bits - 1
        assert quantizer(zero).item() == pytest.approx(2.0 ** (-(2**bits - 1) / steps_per_octave), rel=1e-6, abs=1e-38)


@STEPS
def test_gradient_is_the_ratio_inside_and_zero_outside(steps_per_octave: int) -> None:
    quantizer = with_scale(3, steps_per_octave, 0.5)
    tensor = torch.cat([torch.zeros(1), torch.logspace(-6, 0, 300)]).double().requires_grad_()
    incoming = torch.randn(301, dtype=torch.float64)
    values = quantizer(tensor)
    values.backward(incoming)
    for x, x_hat, upstream, gradient in zip(
        tensor.tolist(), values.tolist(), incoming.tolist(), tensor.grad.tolist(), strict=True
    ):
        code = math.inf if x == 0 else round(-steps_per_octave * math.log2(x / 0.5))
        expected = upstream * x_hat / x if 0 <= code <= 7 else 0.0
        assert gradient == pytest.approx(expected, rel=1e-12)


@STEPS
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_search_against_a_slow_loop(bits: int, steps_per_octave: int) -> None:
    samples = (torch.randn(3, 5000, dtype=torch.float64) * 4).softmax(dim=-1)
    samples[1] = torch.rand(5000)
    quantizer = LogQuantizer(bits, PerChannel(3, axis=-2), steps_per_octave=steps_per_octave).double()
    quantizer.calibrate(samples)
    for index in range(3):
        group = samples[index].tolist()
        descending = sorted(group, reverse=True)
        best = (math.inf, 0.0)
        for percentile in ACTIVATION_PERCENTILES:
            scale = descending[int((1 - percentile) * (len(group) - 1))]
            error = sum(
                (scale * 2.0 ** (-slow_code(x, scale, steps_per_octave, bits) / steps_per_octave) - x) ** 2
                for x in group
            )
            if error < best[0]:
                best = (error, scale)
        assert quantizer.scale[index].item() == pytest.approx(best[1], rel=1e-14)


@STEPS
def test_zeros_get_scale_one(steps_per_octave: int) -> None:
    quantizer = LogQuantizer(4, steps_per_octave=steps_per_octave)
    quantizer.calibrate(torch.zeros(2, 10))
    assert quantizer.scale.item() == 1.0
    assert bool(quantizer(torch.zeros(3)).isfinite().all())


@STEPS
@pytest.mark.parametrize("value", [1e-6, 0.3, 1.0, 50.0])
def test_constant_is_exact(steps_per_octave: int, value: float) -> None:
    quantizer = LogQuantizer(4, steps_per_octave=steps_per_octave)
    samples = torch.full((2, 10), value)
    quantizer.calibrate(samples)
    assert torch.equal(quantizer(samples), samples)


def test_sqrt2_grid_is_twice_as_fine() -> None:
    ratio = with_scale(4, 2, 1.0).decode(torch.tensor([0, 1, 2]))
    assert ratio.tolist() == pytest.approx([1.0, 2**-0.5, 0.5])
