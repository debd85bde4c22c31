"""Only a module that computes what its type says is replaced."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import nn
from torch.nn.utils import parametrizations, prune

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import copied, open_quantized
from isvit_lightning.networks.known import require_known
from isvit_lightning.recipe import Bits
from tests.helpers import DEFAULT_RECIPE, tiny_swin, tiny_vit


class Adapted(nn.Linear):
    """A linear layer with a low-rank term that was not merged."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.load_state_dict(layer.state_dict())
        self.down = nn.Parameter(torch.randn(2, layer.in_features))
        self.up = nn.Parameter(torch.randn(layer.out_features, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class Linear(nn.Linear):
    """Another type of the same name."""


class Doubled(Attention):
    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return 2 * super().forward(x, **options)


def adapt(model: Any) -> None:
    model.blocks[1].attn.qkv = Adapted(model.blocks[1].attn.qkv)


def subclass_attention(model: Any) -> None:
    model.blocks[1].attn.__class__ = Doubled


def patch(model: Any) -> None:
    model.blocks[1].mlp.fc1.forward = lambda x: 2 * x


def wrap(model: Any) -> None:
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")


def retype(model: Any) -> None:
    model.blocks[1].mlp.fc2.__class__ = Linear


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "low_rank_term": (adapt, r"blocks\.1\.attn\.qkv: it is a Adapted, expected exactly Linear: merge the adapter"),
    "same_name": (retype, r"blocks\.1\.mlp\.fc2: it is a tests\.networks\.test_known\.Linear, expected exactly Linear"),
    "attention": (subclass_attention, r"blocks\.1\.attn: it is a Doubled, expected exactly Attention"),
    "patched_forward": (patch, r"blocks\.1\.mlp\.fc1: the forward of this Linear was replaced.*delete the attribute"),
    "parametrized": (
        lambda model: parametrizations.weight_norm(model.blocks[1].attn.proj),
        r"attn\.proj: it is a Linear whose weight is parametrized by _WeightNorm.*remove_parametrizations",
    ),
    "norm_of_a_wire": (
        lambda model: hook(model.blocks[0].norm1),
        r"blocks\.0\.norm1: it is a LayerNorm with the hook hook\.<locals>\.<lambda>",
    ),
    "forward_hook": (lambda model: hook(model.head), r"head: it is a Linear with the hook .*: remove the hook"),
    "pre_hook": (
        lambda model: model.head.register_forward_pre_hook(lambda _, args: (2 * args[0],)),
        r"head: it is a Linear with the hook",
    ),
    "backward_hook": (
        lambda model: model.head.register_full_backward_hook(lambda *_: None),
        r"head: it is a Linear with the hook",
    ),
    "spectral_norm": (
        lambda model: nn.utils.spectral_norm(model.blocks[0].mlp.fc1),
        r"blocks\.0\.mlp\.fc1: it is a Linear with the hook SpectralNorm.*remove_spectral_norm",
    ),
    "pruned": (
        lambda model: prune.random_unstructured(model.blocks[0].mlp.fc1, "weight", 0.3),
        r"Cannot copy blocks\.0\.mlp\.fc1: it is a Linear with the hook RandomUnstructured.*prune\.remove",
    ),
    "other_layer": (
        lambda model: setattr(model.patch_embed, "proj", nn.Conv3d(3, 16, 8)),
        r"patch_embed\.proj: it is a Conv3d, expected exactly Conv2d: choose another model\.network\.name",
    ),
}  # fmt: skip


def hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda _, __, output: 2 * output)


@pytest.mark.parametrize("case", REFUSED)
def test_what_was_added_is_refused_by_its_path(case: str) -> None:
    change, message = REFUSED[case]
    model = tiny_vit()
    change(model)
    with pytest.raises(IsvitError, match=message):
        DEFAULT_RECIPE.open(model, Bits())


def test_a_part_that_is_wrapped_by_compile_is_refused() -> None:
    model = tiny_vit()
    wrap(model)
    with pytest.raises(IsvitError, match=r"blocks\.1: it is wrapped by torch\.compile.*_orig_mod"):
        copied(model)


def test_blocks_and_attention_of_a_swin_are_known_exactly() -> None:
    class Block(SwinTransformerBlock):
        pass

    class Window(WindowAttention):
        pass

    for path, kind in (("layers.0.blocks.1", Block), ("layers.0.blocks.1.attn", Window)):
        model = tiny_swin()
        model.get_submodule(path).__class__ = kind
        with pytest.raises(IsvitError, match=rf"{path}: it is a {kind.__name__}, expected exactly"):
            DEFAULT_RECIPE.open(model, Bits())


def test_weights_that_are_not_plain_numbers_are_refused() -> None:
    layer = nn.Linear(4, 4)
    require_known(layer, "head", nn.Linear)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse(), requires_grad=False)
    with pytest.raises(IsvitError, match=r"head: it is a Linear whose weight is a .*sparse.*give the float network"):
        require_known(layer, "head", nn.Linear)


def test_a_layer_inside_an_adapter_asks_for_a_merge() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.Linear(4, 4)

    with pytest.raises(IsvitError, match=r"it is a Wrapper, expected exactly Linear: merge the adapter"):
        require_known(Wrapper(), "head", nn.Linear)


def test_hooks_on_what_is_not_replaced_are_kept() -> None:
    model, images = tiny_vit(), torch.randn(2, 3, 16, 16)
    hook(model.blocks[0])
    opened = open_quantized(model, lambda role, axes: None)
    torch.testing.assert_close(opened.model(images), model(images), rtol=1e-5, atol=1e-5)


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    model = tiny_vit()
    model.cache = model.blocks[0].attn.qkv.weight * 2  # type: ignore[assignment]
    with pytest.raises(IsvitError, match=r"The network cannot be copied \(.*\), expected .*: detach the tensors"):
        copied(model)
