"""How a float network is built: by timm, or from the package itself."""

import difflib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, cast, get_args

import timm
import torch
from safetensors import SafetensorError
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from isvit_lightning.embedded.networks import EmbeddedName, build_network, embedded_network
from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.sources.published import require_head, require_reachable, unavailable

EMBEDDED: Final[tuple[str, ...]] = get_args(EmbeddedName)
SWIN: Final = "SwinTransformer"
_NO_ARGUMENTS: Final = frozenset(
    {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pretrained_strict"}
)
"""Arguments of timm that fetch or read files, which a description or a packed network from anywhere must not do."""


@dataclass(frozen=True)
class Architecture:
    """How a float network is built, without its weights; plain values that can be stored.

    Args:
        name: timm name, vit_digits, swin_digits, or SwinTransformer for timm's class itself.
        args: keyword arguments of timm's create_model or of the class.
    """

    pipeline_tag: ClassVar[str] = "image-classification"
    """What hubs call the task of the network."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)

    def build(self, pretrained: bool = False) -> nn.Module:
        """The network in evaluation mode.

        Args:
            pretrained: with the weights that its publisher trained, otherwise with random ones.

        Raises:
            IsvitError: the name or an argument is wrong, or the weights cannot be had.
        """
        self._check()
        if self.name in EMBEDDED:
            return self._embedded(pretrained).eval()
        if self.name != SWIN:
            _check_timm_name(self.name, pretrained)
        require_head(self.name, self.args, pretrained)
        if pretrained:
            require_reachable(self.name)
        try:
            if self.name == SWIN:
                return SwinTransformer(**self.args).eval()
            return timm.create_model(self.name, pretrained=pretrained, **self.args).eval()
        except (OSError, SafetensorError) as error:
            raise unavailable(self.name, first_line(error)) from None
        except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError) as error:
            raise IsvitError(
                f"{self.name} could not be built with the arguments {self.args} ({first_line(error)}), expected "
                "arguments of timm's create_model: correct model.network.args, or model_args in "
                "model.network.description."
            ) from None

    def _check(self) -> None:
        """Refuse what no description means."""
        if not isinstance(self.args, dict) or not isinstance(self.name, str):
            raise IsvitError(
                f"The network is {self.name!r} with arguments {self.args!r}, expected a name and arguments by name: "
                "correct model.network.name and model.network.args."
            )
        if _NO_ARGUMENTS & self.args.keys():
            raise IsvitError(
                f"The arguments of {self.name} hold {min(_NO_ARGUMENTS & self.args.keys())}, expected none that reads "
                "a file: leave it out of model.network.args, and set model.network.checkpoint to a file with weights."
            )
        negative = [name for name, value in self.args.items() if isinstance(value, int | float) and value < 0]
        if negative:
            raise IsvitError(
                f"The arguments of {self.name} hold {negative[0]} = {self.args[negative[0]]}, expected no negative "
                "number: correct model.network.args, or model_args in model.network.description."
            )

    @classmethod
    def of(cls, model: nn.Module) -> "Architecture | None":
        """How ``model`` can be built again; None where no name and arguments that give the same network are known.

        Args:
            model: a network of timm's create_model, or one that ships with the package.
        """
        known = [cls(name) for name in EMBEDDED]
        config = getattr(model, "pretrained_cfg", None) or {}
        if timm.is_model(config.get("architecture") or ""):
            embed = getattr(model, "patch_embed", None)
            size, channels = getattr(embed, "img_size", None), getattr(getattr(embed, "proj", None), "in_channels", 3)
            args: dict[str, Any] = {"num_classes": model.num_classes} | (
                {} if size is None else {"img_size": list(size)}
            )
            args |= {} if channels == 3 else {"in_chans": channels}
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


def _structure(model: nn.Module) -> list[object]:
    """Everything that tells two networks apart but the values of their tensors."""
    plain = (bool, int, float, str, tuple, type(None))
    ignored = {"training", "drop_prob", "pretrained_cfg"}
    parts: list[object] = [(key, value.shape) for key, value in model.state_dict().items()]
    for name, module in model.named_modules():
        values = {k: v for k, v in vars(module).items() if isinstance(v, plain) and k not in ignored}
        hooks = bool(module._forward_hooks or module._forward_pre_hooks)
        parts.append((name, type(module), values, hooks))
    return parts
