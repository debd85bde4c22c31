"""Maps are filled below and on the right, and every token stays as it is."""

import pytest
import torch

from isvit_lightning.networks.padding import padded_with


@pytest.mark.parametrize(("bottom", "right"), [(0, 0), (2, 0), (0, 3), (2, 3)])
def test_tokens_stay_and_the_rest_is_the_value(bottom: int, right: int) -> None:
    maps, value = torch.randn(2, 4, 5, 3), torch.tensor([0.1, -7.0, 3e-8])
    padded = padded_with(maps, value, bottom, right)
    assert padded.shape == (2, 4 + bottom, 5 + right, 3)
    expected = [
        [
            [maps[image, row, column] if row < 4 and column < 5 else value for column in range(5 + right)]
            for row in range(4 + bottom)
        ]
        for image in range(2)
    ]
    assert torch.equal(padded, torch.stack([torch.stack([torch.stack(row) for row in rows]) for rows in expected]))
    assert padded.is_contiguous()


def test_no_token_is_rounded_beside_a_large_value() -> None:
    """What padding with zeros and adding the value afterwards would do."""
    maps = torch.full((1, 1, 1, 1), 1e-3)
    assert torch.equal(padded_with(maps, torch.tensor([1e6]), 1, 1)[:, :1, :1], maps)


def test_zeros_are_what_padding_gives() -> None:
    maps = torch.randn(2, 3, 4, 5)
    expected = torch.nn.functional.pad(maps, (0, 0, 0, 2, 0, 1))
    assert torch.equal(padded_with(maps, torch.zeros(5), 1, 2), expected)


def test_gradients_reach_tokens_and_value() -> None:
    maps, value = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(5, requires_grad=True)
    padded_with(maps, value, 1, 2).sum().backward()
    assert maps.grad is not None
    assert value.grad is not None
    assert torch.equal(maps.grad, torch.ones_like(maps))
    assert torch.equal(value.grad, torch.full((5,), 2.0 * (4 * 6 - 3 * 4)))
