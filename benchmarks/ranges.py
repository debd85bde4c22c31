"""Choosing the ranges of all weights of a ViT-B, against sorting the same weights once.

::

    python benchmarks/ranges.py [--record]
"""

import sys
import time
from collections.abc import Callable, Sequence

import speed
import timm
import torch
from torch import nn

from isvit_lightning.networks import calibrate_weights
from isvit_lightning.recipe import Bits, read_recipe

LIMIT_SECONDS = 5.0


@torch.no_grad()
def network(name: str = "vit_base_patch16_224") -> nn.Module:
    """A network of timm with normally distributed weights."""
    model = timm.create_model(name).eval()
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.normal_(std=0.02)
    return model


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of ``work``."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@torch.no_grad()
def measure(model: nn.Module, widths: Sequence[int] = (3, 4, 6)) -> list[speed.Row]:
    """One row for each width."""
    rows: list[speed.Row] = []
    for bits in widths:
        opened = read_recipe("isvit").open(model, Bits(bits, bits))
        weights = [p for p in opened.model.parameters() if p.dim() >= 2]
        sorting = seconds(lambda: [weight.flatten(1).sort(dim=1) for weight in weights])  # noqa: B023 - called at once
        before = time.process_time()
        searching = seconds(lambda: calibrate_weights(opened.model))  # noqa: B023 - called at once
        processor = time.process_time() - before
        rows.append(
            {
                "bits": bits,
                "weights": f"{sum(weight.numel() for weight in weights) / 1e6:.1f} million",
                "search, s": round(searching, 2),
                "its processor time, s": round(processor, 2),
                "sorting once, s": round(sorting, 2),
                "ratio": round(searching / sorting, 2),
                "limit, s": LIMIT_SECONDS,
            }
        )
    return rows


if __name__ == "__main__":
    speed.finish("ranges", measure(network()), sys.argv[1:])
