"""Tables over bins, against the staircase itself."""

import pytest
import torch

from isvit_lightning.export.onnx.staircase import bin_steps, split_steps
from isvit_lightning.export.operands import Steps

THRESHOLDS = torch.tensor([3e-4, 1.1e-3, 0.0123, 0.2, 0.71])
STEPS = Steps(THRESHOLDS, torch.arange(6.0))


def probabilities(seed: int = 0) -> torch.Tensor:
    return torch.rand(4, 5000, generator=torch.Generator().manual_seed(seed)).pow(6)


@pytest.mark.parametrize("of_root", [False, True])
def test_flips_are_those_of_the_samples(of_root: bool) -> None:
    x = probabilities()
    binned = bin_steps(STEPS, x, 1.0, of_root=of_root)
    assert binned.of_root == of_root
    read = binned.steps[((x.sqrt() if of_root else x) * binned.scale).to(torch.int32).long()]
    wrong = (read != torch.bucketize(x, THRESHOLDS, right=True)).float().mean()
    assert binned.flipped == pytest.approx(float(wrong), abs=1e-9)
    assert binned.flipped < 0.002


def test_the_root_spreads_small_numbers() -> None:
    small = Steps(THRESHOLDS * 1e-3, STEPS.values)
    x = probabilities() * 1e-3
    assert bin_steps(small, x, 1.0, of_root=True).flipped < bin_steps(small, x, 1.0, of_root=False).flipped / 5


def test_unseen_numbers_flip_as_seldom() -> None:
    binned = bin_steps(STEPS, probabilities(), 1.0, of_root=True)
    x = probabilities(1)
    wrong = binned.steps[(x.sqrt() * binned.scale).long()] != torch.bucketize(x, THRESHOLDS, right=True)
    assert float(wrong.float().mean()) < 0.001


def test_without_samples_octaves_count_alike() -> None:
    binned = bin_steps(STEPS, None, 1.0, of_root=False)
    assert 0 < binned.flipped < 0.01
    assert len(binned.steps) > binned.scale


def test_a_bin_with_one_threshold_is_split_there() -> None:
    split = split_steps(STEPS, 1.0)
    assert split is not None
    below = torch.nextafter(THRESHOLDS, torch.tensor(0.0))
    for x in (probabilities().flatten(), THRESHOLDS, below, torch.tensor([0.0, 1.0])):
        places = (x.sqrt() * split.scale).long()
        for shift in (0, -1, 1):
            # An engine whose square root differs in its last bit may be one bin off, next to an edge only.
            at = places if shift == 0 else _beside(x, places, split.scale, shift)
            read = split.steps[2 * at + (x >= split.thresholds[at]).long()]
            assert torch.equal(read, torch.bucketize(x, THRESHOLDS, right=True))


def _beside(x: torch.Tensor, places: torch.Tensor, scale: float, shift: int) -> torch.Tensor:
    """The bin beside, for numbers within a millionth of their edge towards it."""
    moved = (x.double().sqrt() * (1 + shift * 1e-6) * scale).long()
    return torch.where((moved - places).abs() <= 1, moved, places)


def test_thresholds_that_no_bins_tell_apart_are_not_split() -> None:
    close = Steps(torch.tensor([0.5, 0.5000001]), torch.arange(3.0))
    assert split_steps(close, 1.0) is None
