"""Small networks with random weights, one quantizer of every type, and measures that several tests share."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, Trainer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from isvit_lightning.export.sealed import HASH, seal
from isvit_lightning.networks import OpenedNetwork, calibrate_activations, calibrate_weights, switch
from isvit_lightning.quantizers import (
    Format,
    Granularity,
    Log,
    PerChannel,
    PerTensor,
    Quantizer,
    Role,
    Search,
    Spec,
    Sulq,
    Uniform,
    per_head,
)
from isvit_lightning.recipe import Bits, Recipe, read_recipe
from isvit_lightning.search import Percentiles
from isvit_lightning.stages import Fold
from isvit_lightning.storage.files import write_tensors
from isvit_lightning.transforms import fold, is_foldable

Build = Callable[[int, Granularity], Quantizer]
DEFAULT_BITS, DEFAULT_RECIPE = Bits(), read_recipe("isvit")
Network = TypeVar("Network", bound=nn.Module)

PUBLISHED_ETAS = (0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0)
SULQ_SEARCH = Percentiles((1.0,), include_zero=False, samples=2**20)
PUBLISHED_SULQ_SEARCH = Percentiles((1.0,), include_zero=False, free=PUBLISHED_ETAS, samples=2**20)
LOG_SEARCH = Percentiles(interpolate=False)


def quantizer_of(
    form: Format | None = None,
    bits: int = 4,
    granularity: Granularity | None = None,
    role: Role = Role.OTHER,
    search: Search | None = None,
) -> Quantizer:
    """A quantizer with the search that its format is used with; uniform and per tensor by default."""
    form = form or Uniform()
    searches: dict[type, Search] = {Sulq: SULQ_SEARCH, Log: LOG_SEARCH}
    spec = Spec(form, bits, granularity or PerTensor(), role)
    return Quantizer(spec, search or searches.get(type(form), Percentiles()))


def building(form: Format, search: Search | None = None) -> Build:
    """Builds quantizers of a format."""
    return lambda bits, granularity: quantizer_of(form, bits, granularity, search=search)


REAL_LINE: dict[str, Build] = {
    "uniform": building(Uniform()),
    "uniform_published": building(Uniform(), Percentiles(include_zero=False)),
}
"""Quantizers of any real tensor: a constructor by name."""

PROBABILITIES: dict[str, Build] = {
    "sulq": building(Sulq()),
    "sulq_published_etas": building(Sulq(), PUBLISHED_SULQ_SEARCH),
    "sulq_published": building(Sulq(extra_codes=1), PUBLISHED_SULQ_SEARCH),
    "log2": building(Log()),
    "log_sqrt2": building(Log(steps_per_octave=2)),
}
"""Quantizers of non-negative tensors: a constructor by name."""

QUANTIZERS: dict[str, Build] = {**REAL_LINE, **PROBABILITIES}

GRANULARITIES: dict[str, tuple[Granularity, tuple[int, ...]]] = {
    "per_tensor": (PerTensor(), (2, 7, 5)),
    "per_channel_of_tokens": (PerChannel(5), (2, 7, 5)),
    "per_channel_of_map": (PerChannel(5), (2, 3, 4, 5)),
    "per_head": (per_head(3), (2, 3, 4, 4)),
    "per_row_of_linear_weight": (PerChannel(6, axis=-2), (6, 10)),
    "per_filter_of_conv_weight": (PerChannel(4, axis=-4), (4, 3, 2, 2)),
}
"""Each granularity with the shape of a tensor that it fits."""


def samples_for(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random values that a quantizer of this name is made for: attention probabilities or a real tensor."""
    if name in PROBABILITIES:
        return (torch.randn(shape) * 3).softmax(dim=-1)
    return torch.randn(shape) + 0.3


def tiny_vit(**changes: Any) -> VisionTransformer:
    """A randomized ViT of two blocks for images of 16 x 16."""
    arguments = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return randomized(VisionTransformer(**{**arguments, **changes}))


def tiny_swin(**changes: Any) -> SwinTransformer:
    """A randomized Swin of two stages with two blocks each, the second one shifted, for images of 32 x 32."""
    arguments = {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (1, 2),
        "window_size": 4,
        "num_classes": 5,
    }
    return randomized(SwinTransformer(**{**arguments, **changes}))


@torch.no_grad()
def randomized(model: Network) -> Network:
    """``model`` in evaluation mode, no parameter left at a value (0 or 1) that would hide a mistake."""
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and name.endswith("weight"):
            parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
        elif "norm" in name and name.endswith("weight"):
            parameter.copy_(torch.empty_like(parameter).normal_().mul_(0.5).exp_())
        else:
            parameter.normal_(std=0.5)
    return model.eval()


def image_batch(size: int | tuple[int, int] = 16, count: int = 3) -> torch.Tensor:
    """Random images ``(count, 3, height, width)``."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 3, height, width)


@contextmanager
def double_precision() -> Iterator[None]:
    """Networks and tensors made inside are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fold_all(network: OpenedNetwork, choice: Fold | None = None) -> None:
    """Fold every wire of a calibrated network that can be folded."""
    choice = choice or Fold()
    for wire in network.wires:
        if is_foldable(wire):
            fold(wire, choice.statistic, choice.round_zero_point)


def quantized_network(
    model: nn.Module,
    images: torch.Tensor,
    bits: Bits = DEFAULT_BITS,
    recipe: Recipe = DEFAULT_RECIPE,
    folded: bool = True,
) -> OpenedNetwork:
    """``model`` opened and calibrated on ``images``, nothing tuned; after the folds of the recipe or before them."""
    opened = recipe.open(model, bits)
    switch(opened.model, weights=False, activations=True)
    calibrate_activations(opened.model, lambda: opened.model(images))
    for step in recipe.steps:
        if folded and isinstance(step, Fold):
            fold_all(opened, step)
    switch(opened.model, weights=True, activations=True)
    calibrate_weights(opened.model)
    return opened


def write_resealed(path: Path, tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> None:
    """Write a packed file whose hash fits, whatever it describes: what another program could have made."""
    write_tensors(path, tensors, {**description, HASH: seal(tensors, description)})


def relative_change(after: torch.Tensor, before: torch.Tensor) -> float:
    """Norm of the difference as a share of the norm before."""
    return float((after - before).detach().norm() / before.detach().norm())


def quiet_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    """A trainer on the CPU that shows and writes nothing, unless ``options`` say otherwise."""
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return Trainer(**{**quiet, **options}, callbacks=list(callbacks))
