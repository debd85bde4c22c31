"""What an engine has to know of a quantizer, against the quantizer itself."""

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.operands import Affine, Steps, encoding_of
from isvit_lightning.quantizers import (
    AdaLog,
    AnchoredUniform,
    Format,
    Log,
    PerChannel,
    PowerOfTwoFactors,
    Quantizer,
    Spec,
    Sulq,
    Tangent,
    TwinUniform,
    Uniform,
    per_head,
)
from isvit_lightning.search import Percentiles

FORMATS = [
    *((Sulq(), bits) for bits in (3, 4, 6, 8)),
    (Log(), 4),
    (Log(2), 3),
    *((form, 4) for form in (AdaLog(), TwinUniform(), TwinUniform(signed=True), Tangent(), AnchoredUniform())),
]


def calibrated(form: Format, bits: int, samples: torch.Tensor, granularity: PerChannel | None = None) -> Quantizer:
    spec = Spec(form, bits) if granularity is None else Spec(form, bits, granularity)
    quantizer = Quantizer(spec, Percentiles(**form.usual_search))
    quantizer.calibrate(samples)
    return quantizer


def probabilities(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 20, 20, generator=generator).pow(5)


@pytest.mark.parametrize(("form", "bits"), FORMATS)
def test_a_staircase_gives_the_quantizers_codes_at_and_around_each_threshold(form: Format, bits: int) -> None:
    quantizer = calibrated(form, bits, probabilities())
    steps = encoding_of(quantizer)
    assert isinstance(steps, Steps)
    below = torch.nextafter(steps.thresholds, torch.tensor(-1.0)).clamp(min=0)
    for numbers in (steps.thresholds, below, probabilities(1).flatten()):
        index = torch.bucketize(numbers, steps.thresholds, right=True)
        torch.testing.assert_close(steps.values[index], quantizer(numbers), rtol=3e-7, atol=0)
    assert bool((steps.values.diff() > 0).all())
    assert len(steps.values) == len(quantizer.table().unique())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_whole_exponents_are_integers_of_seven_octaves_each(bits: int) -> None:
    steps = encoding_of(calibrated(Sulq(), bits, probabilities()))
    assert isinstance(steps, Steps)
    assert steps.parts
    total = sum((part.unit * part.integers.double() for part in steps.parts), torch.zeros(1).double())
    torch.testing.assert_close(total - steps.shift, steps.values.double(), rtol=0, atol=1e-9)
    for part in steps.parts:
        assert torch.equal(part.integers, part.integers.round())
        assert 0 <= float(part.integers.min()) <= float(part.integers.max()) <= 64
    assert bool((torch.stack([part.integers for part in steps.parts]) > 0).sum(dim=0).eq(1).all())


def test_exponents_with_a_fraction_have_no_integers() -> None:
    steps = encoding_of(calibrated(Sulq(), 6, probabilities()))
    assert isinstance(steps, Steps)
    assert steps.parts == ()


def test_grids_by_head_have_thresholds_by_head() -> None:
    samples = probabilities() * torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1)
    quantizer = calibrated(Log(), 3, samples, per_head(3))
    steps = encoding_of(quantizer)
    assert isinstance(steps, Steps)
    assert steps.thresholds.shape == (7, 3, 1, 1)
    codes = (samples >= steps.thresholds.unsqueeze(1)).sum(dim=0)
    values = torch.gather(steps.values.expand(8, 3, 20, 20), 0, codes.flatten(0, 1).unsqueeze(0)[:, :3])
    torch.testing.assert_close(values[0], quantizer(samples)[0], rtol=3e-7, atol=0)


@pytest.mark.parametrize("bits", [3, 4, 7, 8])
@pytest.mark.parametrize("granularity", [None, PerChannel(3, axis=-3)])
def test_equal_steps_are_scale_and_zero_point(bits: int, granularity: PerChannel | None) -> None:
    samples = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0)) + 0.3
    quantizer = calibrated(Uniform(), bits, samples, granularity)
    affine = encoding_of(quantizer)
    assert isinstance(affine, Affine)
    assert torch.equal(affine.scale * (quantizer.encode(samples) - affine.zero_point), quantizer(samples))
    integers = quantizer.encode(samples) - affine.offset
    assert -128 <= float(integers.min()) <= float(integers.max()) <= 127
    assert affine.is_signed == (bits < 8)


def test_factors_of_channels_are_scales_by_channel() -> None:
    samples = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([8.0, 1.0, 0.1])
    quantizer = calibrated(PowerOfTwoFactors(), 4, samples, PerChannel(3))
    affine = encoding_of(quantizer)
    assert isinstance(affine, Affine)
    assert affine.scale.unique().numel() > 1
    assert torch.equal(affine.scale * (quantizer.encode(samples) - affine.zero_point), quantizer(samples))


def test_eight_bits_around_zero_are_signed() -> None:
    assert Affine(torch.tensor(0.1), torch.tensor(128.0), 256).is_signed


def test_a_fractional_zero_point_is_refused() -> None:
    quantizer = calibrated(Uniform(), 4, torch.randn(100))
    quantizer.get_buffer("zero_point").add_(0.5)
    quantizer.refresh()
    with pytest.raises(IsvitError, match="round_zero_point"):
        encoding_of(quantizer)


def test_an_uncalibrated_quantizer_is_refused() -> None:
    with pytest.raises(IsvitError, match="isvit fit"):
        encoding_of(Quantizer(Spec(Uniform(), 4)))
