"""Which images a step is made on."""

import torch

_SHARES = 8


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
