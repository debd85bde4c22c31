"""The shipped networks: a ViT and a Swin for the digits, built by timm and trained by ``tools``."""

from typing import Any, Final, Literal, get_args

from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from isvit_lightning.embedded.digits import CLASSES, IMAGE_SIZE
from isvit_lightning.embedded.files import read_embedded
from isvit_lightning.errors import IsvitError

EmbeddedName = Literal["vit_digits", "swin_digits"]

VIT_DIGITS: Final[dict[str, Any]] = {
    "img_size": IMAGE_SIZE,
    "patch_size": 4,
    "num_classes": CLASSES,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
    "class_token": True,
}
"""Arguments of timm's VisionTransformer: 64 patches and a class token, 460 thousand parameters."""

SWIN_DIGITS: Final[dict[str, Any]] = {
    "img_size": IMAGE_SIZE,
    "patch_size": 2,
    "num_classes": CLASSES,
    "window_size": 4,
    "embed_dim": 32,
    "depths": (2, 2, 2),
    "num_heads": (2, 4, 8),
    "drop_path_rate": 0.05,
}
"""Arguments of timm's SwinTransformer: 256, 64 and 16 tokens, heads of 16 channels, 567 thousand parameters."""


def embedded_network(name: EmbeddedName) -> nn.Module:
    """A shipped network with its trained weights, float32 and in evaluation mode.

    It maps images ``(batch, 3, 32, 32)``, normalised as by :func:`~isvit_lightning.embedded.digit_images`, to logits
    ``(batch, 10)``.

    Args:
        name: ``vit_digits`` or ``swin_digits``.

    Raises:
        IsvitError: no such network.
    """
    network = build_network(name)
    # The file holds float16; loading copies it into the float32 parameters.
    network.load_state_dict(read_embedded(weights_file(name)))
    return network.eval()


def build_network(name: EmbeddedName) -> nn.Module:
    """The architecture of a shipped network with fresh weights.

    Args:
        name: ``vit_digits`` or ``swin_digits``.

    Raises:
        IsvitError: no such network.
    """
    if name == "vit_digits":
        return VisionTransformer(**VIT_DIGITS)
    if name == "swin_digits":
        return SwinTransformer(**SWIN_DIGITS)
    raise IsvitError(
        f"No network named {name!r} is embedded, expected one of {', '.join(get_args(EmbeddedName))}: change "
        "model.network.name."
    )


def weights_file(name: EmbeddedName) -> str:
    """Name of the file with the weights of a shipped network."""
    return f"{name}.safetensors"
