"""What a unit reads while it is tuned: which images, and which of their activations come from where."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import Data

_SHARES = 8
_BITS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).float()
"""The eight bits of each byte, as numbers."""


@dataclass(frozen=True)
class Inputs:
    """What a unit reads while it is tuned.

    Args:
        read: the float network's activations, those of the quantized network so far, or an element-wise random mixture
            of both.
        probability: share of a mixture that comes from the float network.
        drop: share of the elements in front of each matrix product that stay unquantized in a step, drawn anew each
            time (QDrop, arXiv 2203.05740).

    Raises:
        IsvitError: a share is out of its range.
    """

    read: Literal["float", "quantized", "mixed"] = "quantized"
    probability: float = 0.5
    drop: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.probability < 1 and 0 <= self.drop < 1):
            raise IsvitError(
                f"The inputs of a step have probability {self.probability} and drop {self.drop}, expected shares "
                "between 0 and 1: change them under model.recipe.steps."
            )

    @property
    def reads_quantized(self) -> bool:
        """Whether units depend on the units before them."""
        return self.read != "float"

    def draw(self, count: int, shapes: Mapping[str, torch.Size], generator: torch.Generator) -> Data | None:
        """1 where ``count`` images read the float network, else 0, by name; None where inputs are not mixed.

        Args:
            count: number of images.
            shapes: of all rows by name; the first axis counts images.
            generator: source of the draw.
        """
        if self.read != "mixed":
            return None
        sizes = {name: shape[1:].numel() for name, shape in shapes.items()}
        # Several tensors are drawn as one row, as if their sizes stood in front: that keeps the draws of a seed.
        lead = 1 + sum(len(shape) - 1 for shape in shapes.values()) if len(shapes) > 1 else 0
        drawn = draw_ones((count, lead + sum(sizes.values())), generator, self.probability)
        parts = torch.split(drawn[:, lead:], list(sizes.values()), dim=1)
        return {name: part.reshape(count, *shapes[name][1:]) for name, part in zip(sizes, parts, strict=True)}


def mixed(inputs: Data, float_inputs: Data, from_float: Data) -> Data:
    """``float_inputs`` where ``from_float`` is 1, else ``inputs``."""
    # Exact: a weight of 0 or 1 gives one of the two.
    return {name: torch.lerp(inputs[name], float_inputs[name], share) for name, share in from_float.items()}


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


def draw_ones(shape: tuple[int, ...], generator: torch.Generator, probability: float = 0.5) -> torch.Tensor:
    """Ones with a probability, else zeros, float32 of ``shape``.

    Args:
        shape: of the result.
        generator: source of the draw.
        probability: of a one; other than one half, it is met to a 256th.
    """
    count = math.prod(shape)
    if probability != 0.5:
        drawn = torch.empty(count, dtype=torch.uint8).random_(generator=generator)
        return (drawn < round(256 * probability)).float().view(shape)
    drawn = torch.empty(math.ceil(count / 8), dtype=torch.uint8).random_(generator=generator)
    # Eight choices in a random byte: a random number for each would take more time than some units do. Numbers instead
    # of booleans: a CPU interpolates between tensors many times faster than it selects from them.
    return torch.nn.functional.embedding(drawn.int(), _BITS).view(-1)[:count].view(shape)


class Batches(Sequence[torch.Tensor]):
    """Images of each step: the same draws whatever the number of processes, which take turns in a batch.

    Args:
        images: all that are trained on.
        size: of a batch over all processes.
        steps: number of batches.
        seed: of the draws.
        place: number of this process.
        processes: how many there are.
    """

    def __init__(self, images: torch.Tensor, size: int, steps: int, seed: int, place: int, processes: int) -> None:
        self._images, self._size, self._steps, self._seed = images, max(size, processes), steps, seed
        self._place, self._processes = place, processes

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: Any) -> Any:
        generator = torch.Generator().manual_seed(self._seed + step)
        chosen = draw_batch(len(self._images), self._size, generator)
        return self._images[chosen[self._place :: self._processes]]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[step] for step in range(self._steps))
