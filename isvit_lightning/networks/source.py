"""Where a float network comes from: timm, a checkpoint file, a description of one, or the package itself."""

import difflib
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import timm
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from isvit_lightning.embedded.networks import EmbeddedName, build_network, embedded_network
from isvit_lightning.errors import IsvitError
from isvit_lightning.networks.paths import expand_path

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
Triple = tuple[float, float, float]

EMBEDDED: Final[tuple[str, ...]] = get_args(EmbeddedName)
_SWIN: Final = "SwinTransformer"
_PREPROCESSING: Final = ("input_size", "mean", "std", "interpolation", "crop_pct")
_EMBEDDED_PREPROCESSING: Final = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to a network's input.

    Args:
        input_size: channels, height and width of the input.
        mean: mean of each channel, subtracted from values in [0, 1].
        std: standard deviation of each channel, divided by.
        interpolation: how images are resized.
        crop_pct: side of the central crop relative to the resized image.
        crop_mode: how timm crops: center, squash or border.
    """

    input_size: tuple[int, int, int]
    mean: Triple
    std: Triple
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        """Refuse values with which no image could be transformed.

        Raises:
            IsvitError: a value is out of its range.
        """
        if not (_three_numbers(self.input_size) and min(self.input_size) > 0):
            raise IsvitError(
                f"The input size is {self.input_size}, expected channels, height and width above zero: correct "
                "input_size in model.network.description."
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not _three_numbers(values) or (name == "std" and min(values) <= 0):
                raise IsvitError(
                    f"The preprocessing has {name} {values}, expected three finite numbers"
                    f"{', each above zero' if name == 'std' else ''}: correct model.network.{name}."
                )
        if self.interpolation not in get_args(Interpolation):
            raise IsvitError(
                f"The preprocessing has interpolation {self.interpolation!r}, expected one of "
                f"{', '.join(get_args(Interpolation))}: correct model.network.interpolation."
            )
        if not (isinstance(self.crop_pct, (int, float)) and 0 < self.crop_pct < math.inf):
            raise IsvitError(
                f"The preprocessing has crop_pct {self.crop_pct}, expected a number above zero, usually 0.8 to 1: "
                "correct model.network.crop_pct."
            )

    def transform(self) -> Callable[[Image], Tensor]:
        """Timm's evaluation transform, from an RGB image to a float32 tensor ``(3, height, width)``."""
        return cast("Callable[[Image], Tensor]", create_transform(**asdict(self), is_training=False))

    @classmethod
    def of(cls, model: nn.Module) -> "Preprocessing":
        """What the metadata of a timm network asks for, or what a network that ships with the package expects.

        Args:
            model: network; its own image size wins over its metadata, which names the size of its pretrained weights.
        """
        config: dict[str, Any] = resolve_model_data_config(model)
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        if size is not None:
            config["input_size"] = (config["input_size"][0], *size)
        if not getattr(model, "pretrained_cfg", None) and Architecture.of(model) is not None:
            config |= _EMBEDDED_PREPROCESSING
        return cls(**config)


@dataclass(frozen=True)
class Architecture:
    """How a float network is built, without its weights; plain values that can be stored.

    Args:
        name: timm name, vit_digits, swin_digits, or SwinTransformer for timm's class itself.
        args: keyword arguments of timm's create_model or of the class.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)

    def build(self, pretrained: bool = False) -> nn.Module:
        """The network in evaluation mode.

        Args:
            pretrained: with the weights that its publisher trained, otherwise with random ones.

        Raises:
            IsvitError: the name or an argument is wrong, or the weights cannot be had.
        """
        if self.name in EMBEDDED:
            return self._embedded(pretrained).eval()
        if self.name != _SWIN:
            _check_timm_name(self.name, pretrained)
        try:
            if self.name == _SWIN:
                return SwinTransformer(**self.args).eval()
            return timm.create_model(self.name, pretrained=pretrained, **self.args).eval()
        except (OSError, SafetensorError) as error:
            raise IsvitError(
                f"The weights of {self.name} could not be downloaded ({_reason(error)}), expected a connection to "
                "their host: set model.network.checkpoint to a file that holds them."
            ) from None
        except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError) as error:
            raise IsvitError(
                f"{self.name} could not be built with the arguments {self.args} ({_reason(error)}), expected arguments "
                "of timm's create_model: correct model.network.args, or model_args in model.network.description."
            ) from None

    @classmethod
    def of(cls, model: nn.Module) -> "Architecture | None":
        """How ``model`` can be built again; None where no name and arguments that give the same network are known.

        Args:
            model: a network of timm's create_model, or one that ships with the package.
        """
        known = [cls(name) for name in EMBEDDED]
        config = getattr(model, "pretrained_cfg", None) or {}
        if timm.is_model(config.get("architecture") or ""):
            size = getattr(getattr(model, "patch_embed", None), "img_size", None)
            args = {"num_classes": model.num_classes} | ({} if size is None else {"img_size": list(size)})
            known = [cls(config["architecture"], args)]
        return next((architecture for architecture in known if architecture._rebuilds(model)), None)

    def _rebuilds(self, model: nn.Module) -> bool:
        """Whether building gives the same network as ``model``, whatever the values of its tensors."""
        try:
            with torch.random.fork_rng(devices=[]):  # initial weights must not advance the caller's generator
                return _structure(self.build()) == _structure(model)
        except IsvitError:  # an architecture that does not take the usual arguments
            return False

    def _embedded(self, trained: bool) -> nn.Module:
        if self.args:
            raise IsvitError(
                f"{self.name} ships with fixed arguments but got {self.args}, expected none: leave out "
                "model.network.args."
            )
        name = cast("EmbeddedName", self.name)
        return embedded_network(name) if trained else build_network(name)


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
        description: JSON file with architecture (a timm name, or SwinTransformer), model_args, input_size, mean, std,
            interpolation and crop_pct, which take the place of name, args and the network's metadata.
        args: keyword arguments of timm's create_model, for example {img_size: 98}.
        mean: three numbers in place of the network's own.
        std: three numbers in place of the network's own.
        crop_pct: side of the central crop relative to the resized image, in place of the network's own.
        interpolation: how images are resized, in place of the network's own.
    """

    name: str = ""
    pretrained: bool = True
    checkpoint: str | None = None
    description: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    mean: Triple | None = None
    std: Triple | None = None
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
        unpublished = architecture.name == _SWIN or (self.description is not None and "." not in architecture.name)
        if published and unpublished:
            raise IsvitError(
                f"{self.title} describes a {architecture.name} without weights, expected a file that holds them: set "
                "model.network.checkpoint, or model.network.pretrained to false for random weights."
            )
        model = architecture.build(pretrained=published)
        if self.checkpoint is not None:
            load_checkpoint(model, expand_path(self.checkpoint), architecture.name)
        own = {"mean": self.mean, "std": self.std, "crop_pct": self.crop_pct, "interpolation": self.interpolation}
        values = {**described, **{key: value for key, value in own.items() if value is not None}}
        preprocessing = replace(Preprocessing.of(model), **values)
        return LoadedNetwork(model, preprocessing, _fingerprint(self.title, model), architecture)

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
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else _reason(error)
        raise IsvitError(
            f"{path} does not describe a network ({reason}), expected JSON with architecture and model_args: change "
            "model.network.description."
        ) from None
    return architecture, {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def load_checkpoint(model: nn.Module, path: Path, name: str) -> None:
    """Load the weights in ``path`` into ``model``, all of them and nothing else.

    Args:
        model: network; floating tensors of other types are converted to its own.
        path: .safetensors file, or a torch file with a state dict, plain or under ``state_dict`` or ``model``.
        name: what the network is called in messages.

    Raises:
        IsvitError: the file is missing, damaged or belongs to another network.
    """
    state = _read_state(path)
    own = model.state_dict()
    # Older checkpoints hold buffers that timm computes by itself today, such as Swin's relative position index.
    computed = {key for key, _ in model.named_buffers()} - own.keys()
    state = {key: value for key, value in state.items() if key not in computed}
    faults = [f"{key} is missing" for key in own if key not in state]
    faults += [f"{key} is unexpected" for key in state if key not in own]
    faults += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if faults:
        raise IsvitError(
            f"{path} is no checkpoint of {name} with these arguments: {faults[0]}, first of {len(faults)} differences, "
            "expected the same tensors: change model.network.checkpoint, model.network.name or model.network.args."
        )
    model.load_state_dict(state)


def _read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a checkpoint file."""
    if not path.is_file():
        raise IsvitError(
            f"{path} does not exist, expected a .safetensors or torch file: change model.network.checkpoint."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - damaged bytes make the readers raise almost anything
        raise IsvitError(
            f"{path} cannot be read as weights ({_reason(error)}), expected an undamaged .safetensors file or a torch "
            "file of tensors only: change model.network.checkpoint."
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not (isinstance(state, dict) and state and all(map(_names_tensor, state.items()))):
        raise IsvitError(
            f"{path} holds no state dict, expected tensors by name, plain or under state_dict or model: change "
            "model.network.checkpoint."
        )
    return {key.removeprefix("module."): value for key, value in state.items()}


def _names_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _check_timm_name(name: str, published: bool) -> None:
    """Refuse a name that timm does not know, or whose weights it does not settle."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, [*timm.list_models(), *EMBEDDED], n=3)
        hint = f" such as {', '.join(near)}" if near else ""
        raise IsvitError(
            f"timm has no network {base}, expected one of timm.list_models(){hint}: change model.network.name."
        )
    tagged = timm.list_pretrained(f"{base}.*")
    if tag and name not in tagged:
        raise IsvitError(
            f"timm has no tag {tag} for {base}, expected {' or '.join(tagged) or 'none'}: change model.network.name."
        )
    if published and not tagged:
        raise IsvitError(
            f"timm publishes no weights for {name}, expected a file that holds them: set model.network.checkpoint, or "
            "model.network.pretrained to false for random weights."
        )
    if published and not tag:
        default = timm.get_pretrained_cfg_value(base, "tag")
        raise IsvitError(
            f"{name} has no tag, which leaves open which weights are meant, expected a name with a tag, such as "
            f"{base}.{default}, timm's default: change model.network.name."
        )


def _fingerprint(name: str, model: nn.Module) -> dict[str, str]:
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {"name": name, "sha256": digest.hexdigest()}


def _three_numbers(values: object) -> bool:
    """Whether ``values``, which may come from a file, is a triple of finite numbers."""
    numbers = isinstance(values, tuple) and all(isinstance(value, (int, float)) for value in values)
    return numbers and len(cast("Triple", values)) == 3 and all(map(math.isfinite, cast("Triple", values)))


def _structure(model: nn.Module) -> list[object]:
    """Everything that tells two networks apart but the values of their tensors."""
    plain = (bool, int, float, str, tuple, type(None))
    ignored = {"training", "drop_prob", "pretrained_cfg"}
    parts: list[object] = [(key, value.shape) for key, value in model.state_dict().items()]
    for name, module in model.named_modules():
        values = {k: v for k, v in vars(module).items() if isinstance(v, plain) and k not in ignored}
        parts.append((name, type(module), values))
    return parts


def _reason(error: Exception) -> str:
    """First line of what a library reports."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
