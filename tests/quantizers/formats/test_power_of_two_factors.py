"""Power-of-two factors against the grid of all channels and each channel's best exponent."""

import pytest
import torch

from isvit_lightning.quantizers import PerChannel, PerTensor, Quantizer, Spec
from isvit_lightning.quantizers.formats import PowerOfTwoFactors, Uniform
from isvit_lightning.search import Percentiles

SPREAD = torch.tensor([8.0, 1.0, 0.3, 4.0, 2.0], dtype=torch.float64)


def calibrated(form: PowerOfTwoFactors | Uniform, bits: int, samples: torch.Tensor, by_channel: bool) -> Quantizer:
    granularity = PerChannel(samples.shape[-1]) if by_channel else PerTensor()
    quantizer = Quantizer(Spec(form, bits, granularity), Percentiles((1.0,))).double()
    quantizer.calibrate(samples)
    return quantizer


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_scale_and_zero_point_are_those_of_all_channels(bits: int) -> None:
    samples = (torch.randn(500, 5, dtype=torch.float64) + 0.2) * SPREAD
    quantizer = calibrated(PowerOfTwoFactors(), bits, samples, by_channel=True)
    whole = calibrated(Uniform(), bits, samples, by_channel=False)
    scale, zero_point, exponent = quantizer.grid
    torch.testing.assert_close(scale * 8, whole.scale.expand(5), rtol=1e-12, atol=0)
    assert torch.equal(zero_point, whole.zero_point.expand(5))
    assert set(exponent.tolist()) <= {0.0, 1.0, 2.0, 3.0}
    assert exponent[0] == 3
    assert bool((exponent[SPREAD.argsort()].diff() >= 0).all())


def test_each_channel_takes_its_best_exponent() -> None:
    samples = (torch.randn(500, 5, dtype=torch.float64) + 0.2) * SPREAD
    quantizer = calibrated(PowerOfTwoFactors(), 4, samples, by_channel=True)
    scale, zero_point, _ = quantizer.grid
    for channel in range(5):
        errors = []
        for exponent in range(4):
            step = scale[channel] * 2**exponent
            codes = ((samples[:, channel] / step).round() + zero_point[channel]).clamp(0, 15)
            errors.append(float(((codes - zero_point[channel]) * step - samples[:, channel]).square().mean()))
        assert int(quantizer.exponent[channel]) == min(range(4), key=errors.__getitem__)


def test_a_small_channel_gains_and_none_loses() -> None:
    samples = torch.randn(2000, 5, dtype=torch.float64) * SPREAD
    with_factors, without = (
        (calibrated(form, 4, samples, by_channel)(samples) - samples).square().mean(dim=0)
        for form, by_channel in ((PowerOfTwoFactors(), True), (Uniform(), False))
    )
    assert bool((with_factors <= without * (1 + 1e-9)).all())
    assert float(with_factors[2]) < 0.25 * float(without[2])
