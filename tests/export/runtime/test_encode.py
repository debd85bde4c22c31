"""Integers of activations, against the quantizer."""

import pytest
import torch

from isvit_lightning.export.operands import Affine, Steps, encoding_of
from isvit_lightning.export.runtime.encode import Codes, Operand, Snap
from isvit_lightning.quantizers import Format, Granularity, Log, PerChannel, PerTensor, Sulq, Uniform, per_head
from tests.export.test_operands import calibrated, probabilities

GRIDS: list[tuple[Format, int, Granularity]] = [
    (Uniform(), 3, PerTensor()),
    (Uniform(), 8, PerTensor()),
    (Uniform(), 4, per_head(3)),
    (Uniform(), 8, PerChannel(20)),
    (Sulq(), 4, PerTensor()),
    (Sulq(), 8, PerTensor()),
    (Log(), 3, per_head(3)),
]


def numbers(form: Format) -> torch.Tensor:
    """Samples with ties: whole multiples of half a step are among them."""
    if form.non_negative:
        return probabilities(1)
    return torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("form", "bits", "by"), GRIDS)
def test_values_are_those_of_the_quantizer(form: Format, bits: int, by: Granularity) -> None:
    quantizer = calibrated(form, bits, numbers(form), by)
    x = numbers(form) * 1.3
    torch.testing.assert_close(Snap(encoding_of(quantizer))(x), quantizer(x), rtol=3e-7, atol=0)


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_codes_are_those_of_the_quantizer_at_ties_too(bits: int, signed: bool) -> None:
    quantizer = calibrated(Uniform(), bits, numbers(Uniform()))
    affine = encoding_of(quantizer)
    assert isinstance(affine, Affine)
    ties = (torch.arange(-300, 300) + 0.5) * affine.scale
    x = torch.cat([numbers(Uniform()).flatten(), ties, torch.nextafter(ties, torch.tensor(9.0))])
    codes = Codes(affine, affine.offset if signed else None)(x)
    assert codes.dtype == (torch.int8 if signed else torch.uint8)
    assert torch.equal(codes.int() + (affine.offset.int() if signed else 0), quantizer.encode(x))


@pytest.mark.parametrize(("form", "bits"), [(Uniform(), 4), (Uniform(), 8), (Sulq(), 3), (Sulq(), 4)])
@pytest.mark.parametrize("signed", [False, True])
def test_an_operand_adds_up_to_the_values(form: Format, bits: int, signed: bool) -> None:
    quantizer = calibrated(form, bits, numbers(form))
    operand = Operand(encoding_of(quantizer), signed)
    x = numbers(form)
    zero_point = 0.0 if operand.zero_point is None else operand.zero_point
    parts = zip(operand.units, operand(x), strict=True)
    total = sum(unit * (part.double() - zero_point) for unit, part in parts)
    torch.testing.assert_close((operand.factor * total - operand.shift).float(), quantizer(x), rtol=1e-6, atol=1e-9)


def test_many_thresholds_are_searched() -> None:
    quantizer = calibrated(Sulq(), 8, probabilities())
    steps = encoding_of(quantizer)
    assert isinstance(steps, Steps)
    assert len(steps.thresholds) > 200
    torch.testing.assert_close(Snap(steps)(probabilities(2)), quantizer(probabilities(2)), rtol=3e-7, atol=0)
