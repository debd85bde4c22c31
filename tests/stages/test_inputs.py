"""Batches hold each image at most once, each as often as any other, and equal shares for two, four and eight."""

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.stages.inputs import Inputs, draw_batch, draw_ones, mixed


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
    mixture = draw_ones(shape, torch.Generator().manual_seed(4))
    drawn = torch.empty(14, dtype=torch.uint8).random_(generator=torch.Generator().manual_seed(4))
    bits = [float(byte >> place & 1) for byte in drawn.tolist() for place in range(8)]
    assert mixture.shape == shape
    assert mixture.flatten().tolist() == bits[: 3 * 5 * 7]


def test_a_mixture_takes_half_of_each_and_nothing_between() -> None:
    mixture = draw_ones((64, 50, 31), torch.Generator().manual_seed(0))
    assert mixture.unique().tolist() == [0, 1]
    assert float(mixture.mean()) == pytest.approx(0.5, abs=0.01)
    assert float((mixture.mean(dim=0) - 0.5).abs().max()) < 0.35
    first, second = torch.randn(2, *mixture.shape) * 10.0 ** torch.randint(-6, 6, mixture.shape)
    assert torch.equal(torch.lerp(first, second, mixture), torch.where(mixture.bool(), second, first))


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.8])
def test_another_share_is_met_to_a_256th(probability: float) -> None:
    ones = draw_ones((400, 500), torch.Generator().manual_seed(0), probability)
    assert ones.unique().tolist() == [0, 1]
    share = round(256 * probability) / 256
    # Five standard deviations.
    assert float(ones.mean()) == pytest.approx(share, abs=5 * (share * (1 - share) / ones.numel()) ** 0.5)
    assert abs(share - probability) <= 1 / 512


@pytest.mark.parametrize("read", ["float", "quantized"])
def test_nothing_is_drawn_where_inputs_are_not_mixed(read: str) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert Inputs(read).draw(3, {"x": torch.Size((9, 4))}, generator) is None  # type: ignore[arg-type]
    assert torch.equal(generator.get_state(), before)
    assert Inputs(read).reads_quantized is (read == "quantized")  # type: ignore[arg-type]


def test_a_draw_has_the_shape_of_the_rows_of_a_batch() -> None:
    shapes = {"x": torch.Size((90, 5, 7))}
    drawn = Inputs("mixed").draw(6, shapes, torch.Generator().manual_seed(3))
    assert drawn is not None
    assert torch.equal(drawn["x"], draw_ones((6, 5, 7), torch.Generator().manual_seed(3)))


def test_tensors_of_a_named_unit_are_drawn_each_for_itself() -> None:
    shapes = {"boxes": torch.Size((90, 40, 4)), "scores": torch.Size((90, 100))}
    drawn = Inputs("mixed", probability=0.25).draw(64, shapes, torch.Generator().manual_seed(3))
    assert drawn is not None
    assert {name: tuple(part.shape) for name, part in drawn.items()} == {"boxes": (64, 40, 4), "scores": (64, 100)}
    for part in drawn.values():
        assert part.unique().tolist() == [0, 1]
        assert float(part.mean()) == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(drawn["boxes"].flatten(1)[:, :100], drawn["scores"])


def test_a_mixture_reads_the_float_network_where_the_draw_is_one() -> None:
    quantized, from_floats = (
        {"a": torch.zeros(3), "b": torch.zeros(2)},
        {"a": torch.ones(3), "b": torch.full((2,), 7.0)},
    )
    shares = {"a": torch.tensor([0.0, 1.0, 0.0]), "b": torch.tensor([1.0, 0.0])}
    found = mixed(quantized, from_floats, shares)
    assert {name: value.tolist() for name, value in found.items()} == {"a": [0, 1, 0], "b": [7, 0]}


@pytest.mark.parametrize("values", [{"probability": 0.0}, {"probability": 1.0}, {"drop": -0.1}, {"drop": 1.0}])
def test_shares_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(IsvitError, match=r"expected shares between 0 and 1: change them under model\.recipe\.steps"):
        Inputs("mixed", **values)
