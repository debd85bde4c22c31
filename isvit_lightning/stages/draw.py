"""Which images a step is made on, and which of their inputs come from where."""

import math

import torch

_SHARES = 8
_BITS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).float()
"""The eight bits of each byte, as numbers."""


def draw_batch(images: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """``size`` of ``images`` at random, without repetition, as indices ``(min(size, images),)``.

    As many of each remainder modulo 8 as can be: processes carry the images of one remainder, so that two, four or
    eight of them get equal shares of every batch, and none waits for another. Each image is as likely as any other.

    Args:
        images: number of images.
        size: images of a batch.
        generator: source of the draw.
    """
    shuffled = torch.randperm(images, generator=generator)
    shares = torch.nn.functional.one_hot(shuffled % _SHARES, _SHARES).cumsum(dim=0)
    # Dealt in rounds: the first image of each remainder, then the second of each, and so on.
    rounds = shares[torch.arange(images), shuffled % _SHARES]
    return shuffled[rounds.argsort(stable=True)[:size]]


def draw_mixture(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Zeros and ones at random, half and half, float32 of ``shape``.

    Args:
        shape: of the tensors that are mixed.
        generator: source of the draw.
    """
    count = math.prod(shape)
    drawn = torch.empty(math.ceil(count / 8), dtype=torch.uint8).random_(generator=generator)
    # Eight choices in a random byte: a random number for each would take more time than some units do. Numbers instead
    # of booleans: a CPU interpolates between tensors many times faster than it selects from them.
    return torch.nn.functional.embedding(drawn.int(), _BITS).view(-1)[:count].view(shape)
