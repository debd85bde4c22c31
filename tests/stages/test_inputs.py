"""Batches hold each image at most once, each as often as any other, and equal shares for two, four and eight."""

import pytest
import torch

from isvit_lightning.stages.draw import draw_batch, draw_mixture


@pytest.mark.parametrize(("images", "size"), [(256, 32), (10, 4), (3, 8), (1, 1), (1000, 31), (8, 8)])
def test_no_image_twice(images: int, size: int) -> None:
    chosen = draw_batch(images, size, torch.Generator().manual_seed(0))
    assert len(set(chosen.tolist())) == len(chosen) == min(images, size)
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < images


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_every_process_gets_as_many(processes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        counts = torch.bincount(draw_batch(256, 32, generator) % processes, minlength=processes)
        assert counts.tolist() == [32 // processes] * processes


def test_shares_differ_by_one_where_they_must() -> None:
    generator = torch.Generator().manual_seed(2)
    counts = torch.stack([torch.bincount(draw_batch(100, 12, generator) % 8, minlength=8) for _ in range(50)])
    assert set(counts.flatten().tolist()) == {1, 2}


def test_every_image_is_as_likely() -> None:
    generator = torch.Generator().manual_seed(3)
    draws = 4000
    counts = torch.zeros(40)
    for _ in range(draws):
        counts[draw_batch(40, 12, generator)] += 1
    expected = draws * 12 / 40
    # Five standard deviations of a binomial count.
    assert (counts - expected).abs().max() < 5 * (expected * (1 - 12 / 40)) ** 0.5


def test_the_generator_decides() -> None:
    first, again = (draw_batch(50, 16, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, draw_batch(50, 16, torch.Generator().manual_seed(5)))


def test_a_mixture_is_the_bits_of_random_bytes() -> None:
    shape = (3, 5, 7)
    mixture = draw_mixture(shape, torch.Generator().manual_seed(4))
    drawn = torch.empty(14, dtype=torch.uint8).random_(generator=torch.Generator().manual_seed(4))
    bits = [float(byte >> place & 1) for byte in drawn.tolist() for place in range(8)]
    assert mixture.shape == shape
    assert mixture.flatten().tolist() == bits[: 3 * 5 * 7]


def test_a_mixture_takes_half_of_each_and_nothing_between() -> None:
    mixture = draw_mixture((64, 50, 31), torch.Generator().manual_seed(0))
    assert mixture.unique().tolist() == [0, 1]
    assert float(mixture.mean()) == pytest.approx(0.5, abs=0.01)
    assert float((mixture.mean(dim=0) - 0.5).abs().max()) < 0.35
    first, second = torch.randn(2, *mixture.shape) * 10.0 ** torch.randint(-6, 6, mixture.shape)
    assert torch.equal(torch.lerp(first, second, mixture), torch.where(mixture.bool(), second, first))
