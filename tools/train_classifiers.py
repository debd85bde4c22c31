"""Training of the shipped networks: ``python -m tools.train_classifiers``.

The weights never depend on the held-out digits: there is no early stopping and no choice among epochs. The networks
learn from the digits in the package, so that these have to be there before ``--out`` names another folder.
"""

import argparse
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

import torch
from safetensors.torch import load_file, save
from torch import nn

from isvit_lightning.embedded.digits import DIGITS_FILE, digit_images, write_digits
from isvit_lightning.embedded.networks import EmbeddedName, build_network, weights_file
from isvit_lightning.errors import IsvitError
from tools.augment import Augmentation, augment

logger = logging.getLogger(__name__)

EMBEDDED: Final = Path(__file__).parents[1] / "isvit_lightning" / "embedded"
"""Folder of the shipped weights."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW, a short linear warm-up and a cosine to zero.

    Weight decay, label smoothing and the long cosine keep weights and activations small and even, which is what
    quantization to few bits needs.

    Args:
        epochs: passes over the images, at least 1.
        batch_size: images of one step.
        learning_rate: highest rate.
        weight_decay: decay of matrices; vectors (biases, norms) and embeddings are not decayed.
        warmup: share of the steps in which the rate rises.
        label_smoothing: share of the target spread over all classes.
        augmentation: distortion of the images.
        seed: of the initial weights, the order, the distortions and stochastic depth.

    Raises:
        IsvitError: fewer than one epoch.
    """

    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.05
    label_smoothing: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a training without an epoch."""
        if self.epochs < 1:
            raise IsvitError(f"The number of epochs is {self.epochs}, expected at least 1: change --epochs.")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of ``step`` out of ``steps``, counted from zero."""
        warmup = max(1, round(self.warmup * steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_network(name: EmbeddedName, images: torch.Tensor, labels: torch.Tensor, recipe: Recipe) -> nn.Module:
    """Train a network from scratch; the caller's random state is left as it was.

    Args:
        name: ``vit_digits`` or ``swin_digits``.
        images: normalised images ``(n, 3, 32, 32)``.
        labels: classes ``(n,)``.
        recipe: how to train.

    Returns:
        The network after the last epoch, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        generator = torch.Generator().manual_seed(recipe.seed)
        network = build_network(name).train()
        optimizer = torch.optim.AdamW(_groups(network, recipe.weight_decay), lr=recipe.learning_rate)
        steps, step = recipe.epochs * math.ceil(len(images) / recipe.batch_size), 0
        for epoch in range(recipe.epochs):
            total = 0.0
            order = torch.randperm(len(images), generator=generator)
            for start in range(0, len(images), recipe.batch_size):
                batch = order[start : start + recipe.batch_size]
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(step, steps)
                logits = network(augment(images[batch], recipe.augmentation, generator))
                loss = nn.functional.cross_entropy(logits, labels[batch], label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(network.parameters(), max_norm=1.0)
                optimizer.step()
                total, step = total + loss.item() * len(batch), step + 1
            logger.info("%s: epoch %d of %d, loss %.4f", name, epoch + 1, recipe.epochs, total / len(images))
    return network.eval()


@torch.no_grad()
def top1(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Percentage of images ``(n, 3, 32, 32)`` whose largest logit is their label ``(n,)``."""
    hits = 0
    for start in range(0, len(labels), 200):
        hits += int((network(images[start : start + 200]).argmax(1) == labels[start : start + 200]).sum())
    return 100 * hits / len(labels)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state of ``network`` to ``path`` as float16."""
    # Not save_file, which leaves a file that only its owner may read.
    path.write_bytes(save({name: value.half().contiguous() for name, value in network.state_dict().items()}))


def write_network(name: EmbeddedName, recipe: Recipe, folder: Path) -> float:
    """Train a network on the train split and write its weights.

    Args:
        name: ``vit_digits`` or ``swin_digits``.
        recipe: how to train.
        folder: where ``<name>.safetensors`` goes.

    Returns:
        Top-1 percentage of the written weights on the held-out split.
    """
    start = time.perf_counter()
    network = train_network(name, *digit_images("train"), recipe)
    path = folder / weights_file(name)
    save_weights(network, path)
    network.load_state_dict(load_file(path))  # measured is what was written, not what was trained
    accuracy = top1(network, *digit_images("held_out"))
    logger.info("%s: top-1 %.2f %% on the held-out digits after %.0f s", name, accuracy, time.perf_counter() - start)
    return accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the digits and the chosen networks.

    Args:
        arguments: command line; that of the process if None.

    Returns:
        Exit status: 0, or 2 after a mistake in the input.
    """
    names: tuple[EmbeddedName, ...] = get_args(EmbeddedName)
    parser = argparse.ArgumentParser(prog="python -m tools.train_classifiers", description=main.__doc__)
    parser.add_argument("--network", choices=(*names, "all"), default="all", help="what to train")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs, help="passes over the train split")
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="folder to write to")
    options = parser.parse_args(arguments)
    try:
        recipe = Recipe(epochs=options.epochs)
        options.out.mkdir(parents=True, exist_ok=True)
        write_digits(options.out / DIGITS_FILE)
        for name in names:
            if options.network in (name, "all"):
                write_network(name, recipe, options.out)
    except IsvitError as mistake:
        logger.error("%s", mistake)  # noqa: TRY400 - a mistake in the input needs no traceback
        return 2
    return 0


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters in two groups: matrices, which are decayed, and everything else."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        embedding = name.endswith(("pos_embed", "cls_token", "relative_position_bias_table"))
        (free if parameter.dim() == 1 or embedding else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    raise SystemExit(main())
