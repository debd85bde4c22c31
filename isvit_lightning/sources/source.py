"""Where a float network comes from: timm, a checkpoint file, a description of one, or the package itself."""

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.sources.architecture import SWIN, Architecture
from isvit_lightning.sources.checkpoint import load_checkpoint
from isvit_lightning.sources.paths import expand_path
from isvit_lightning.sources.preprocessing import (
    Interpolation,
    PerChannel,
    Preprocessing,
    is_input_size,
    require_image_channels,
)
from isvit_lightning.system.hashing import hash_of

_LOG = logging.getLogger(__name__)
_PREPROCESSING: Final = ("input_size", "mean", "std", "interpolation", "crop_pct")


@dataclass(frozen=True)
class LoadedNetwork:
    """A float network, ready to be opened.

    Args:
        model: the network in evaluation mode, float32.
        preprocessing: what it expects to be done to images.
        fingerprint: ``name`` and ``sha256`` over all tensors, to recognise the network by.
        architecture: how to build it without its weights.
    """

    model: nn.Module
    preprocessing: Preprocessing
    fingerprint: dict[str, str]
    architecture: Architecture


@dataclass(frozen=True)
class NetworkSource:
    """Which float network is quantized.

    ``$NAME``, ``${NAME}`` and ``~`` in paths are replaced; ISVIT_DATA is ../shared/data where it is not set.

    Args:
        name: name of a timm network with its tag, for example deit_tiny_patch16_224.fb_in1k, or vit_digits or
            swin_digits, which ship with the package. Where description is given, only a title for the results.
        pretrained: load the weights that timm publishes under the tag; false gives random weights. Weights of
            checkpoint take precedence.
        checkpoint: .safetensors or torch file with the weights, any floating type.
        checkpoint_key: name under which the weights lie in the file, for example state_dict or ema.module, in place of
            the first of state_dict_ema, model_ema, state_dict and model.
        trust_checkpoint: read a torch file that holds more than tensors, which may run code that it brings.
        description: JSON file with architecture (a timm name, or SwinTransformer), model_args, input_size, mean, std,
            interpolation and crop_pct, which take the place of name, args and the network's metadata.
        args: keyword arguments of timm's create_model, for example {img_size: 98}.
        mean: a number for each channel in place of the network's own.
        std: a number for each channel in place of the network's own.
        crop_pct: side of the central crop relative to the resized image, in place of the network's own.
        interpolation: how images are resized, in place of the network's own.
    """

    name: str = ""
    pretrained: bool = True
    checkpoint: str | None = None
    checkpoint_key: str | None = None
    trust_checkpoint: bool = False
    description: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    mean: PerChannel | None = None
    std: PerChannel | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None

    @property
    def title(self) -> str:
        """What the network is called in results: its name, or that of its description."""
        return self.name or Path(self.description or "").stem

    def build(self) -> LoadedNetwork:
        """Construct the network and load its weights.

        Raises:
            IsvitError: the name, a file, an argument or the way to the weights is wrong.
        """
        architecture, described = self._described()
        published = self.pretrained and self.checkpoint is None
        unpublished = architecture.name == SWIN or (self.description is not None and "." not in architecture.name)
        if published and unpublished:
            raise IsvitError(
                f"{self.title} describes a {architecture.name} without weights, expected a file that holds them: set "
                "model.network.checkpoint, or model.network.pretrained to false for random weights."
            )
        if isinstance(channels := architecture.args.get("in_chans"), int):
            require_image_channels(channels)  # before weights are downloaded
        with contextlib.nullcontext() if self.pretrained or self.checkpoint else drawn_from_seed():
            model = architecture.build(pretrained=published)
        if self.checkpoint is not None:
            path = expand_path(self.checkpoint)
            load_checkpoint(model, path, architecture.name, self.trust_checkpoint, self.checkpoint_key)
        preprocessing = self._preprocessing(model, described)
        return LoadedNetwork(model, preprocessing, fingerprint(self.title, model), architecture)

    def _preprocessing(self, model: nn.Module, described: dict[str, Any]) -> Preprocessing:
        """The network's own, its description's and the options', each in place of the one before."""
        own = Preprocessing.of(model)
        require_image_channels(own.input_size[0])
        size = described.get("input_size", own.input_size)
        if is_input_size(size) and size != own.input_size and not _takes(model, size):
            raise IsvitError(
                f"{self.title} reads inputs of {own.input_size} but its description has input_size {size}, expected "
                "the same: correct input_size, or img_size and in_chans in model_args, in model.network.description."
            )
        options = {"mean": self.mean, "std": self.std, "crop_pct": self.crop_pct, "interpolation": self.interpolation}
        chosen = replace(own, **{**described, **{key: value for key, value in options.items() if value is not None}})
        if chosen.input_size[0] == 1:
            _LOG.info("%s reads gray images with mean %.4g and std %.4g", self.title, *chosen.mean, *chosen.std)
        return chosen

    def _described(self) -> tuple[Architecture, dict[str, Any]]:
        """The architecture, and the preprocessing that a description sets."""
        if self.description is not None:
            return _read_description(expand_path(self.description))
        if not self.name:
            raise IsvitError(
                "No network is named, expected a timm name with its tag or vit_digits: set model.network.name or "
                "model.network.description."
            )
        return Architecture(self.name, self.args), {}


def _read_description(path: Path) -> tuple[Architecture, dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = {key: content[key] for key in _PREPROCESSING if key in content}
        architecture = Architecture(str(content["architecture"]), dict(content.get("model_args", {})))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else first_line(error)
        raise IsvitError(
            f"{path} does not describe a network ({reason}), expected JSON with architecture and model_args: change "
            "model.network.description."
        ) from None
    return architecture, {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


@contextlib.contextmanager
def drawn_from_seed() -> Iterator[None]:
    """Random weights that are drawn inside depend on the seed of the process alone: another one draws the same."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch.initial_seed())
        yield


def _takes(model: nn.Module, size: tuple[int, int, int]) -> bool:
    """Whether a network reads inputs of another size than the one that it was built for."""
    embed: Any = getattr(model, "patch_embed", None)
    if embed is None or getattr(embed, "strict_img_size", True):
        return embed is None
    channels, height, width = size
    rows, columns = embed.patch_size
    whole = embed.dynamic_img_pad or (height % rows == 0 and width % columns == 0)
    return channels == embed.proj.in_channels and whole


def fingerprint(name: str, model: nn.Module) -> dict[str, str]:
    """Name, and hash over all tensors, to recognise a network by."""
    return {"name": name, "sha256": hash_of(model.state_dict())}
