"""An opened network must compute what the float network does."""

import copy
import logging
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from timm.layers import Mlp
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import Bits, Recipe, read_recipe
from isvit_lightning.run.pipeline import Calibration, require_equal_outputs
from isvit_lightning.stages import Schedule
from isvit_lightning.transforms import RotateHeads, RotateStream, Transform
from tests.helpers import DEFAULT_RECIPE, image_batch, randomized, tiny_swin, tiny_vit


def check(model: Any, recipe: Recipe = DEFAULT_RECIPE, size: int | tuple[int, int] = 16) -> None:
    require_equal_outputs(Calibration(model, image_batch(size, 3), Bits(), recipe, Schedule()))


def retyped(model: nn.Module, kind: type) -> nn.Module:
    model.__class__ = kind
    return model


class Plain(VisionTransformer):
    """Changes nothing."""

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return super().forward(x, **options)


class Brighter(VisionTransformer):
    """Adds a term in front of all units."""

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return super().forward(x + 0.5, **options)


class Behind(VisionTransformer):
    """Adds a term behind the last block."""

    def forward_features(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return super().forward_features(x, **options) + 0.5


class Flipped(VisionTransformer):
    """The mean over an image and its mirror image."""

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return (super().forward(x) + super().forward(x.flip(-1))) / 2


class Noisy(VisionTransformer):
    """Adds noise in evaluation mode too."""

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x), **options)


class Past(VisionTransformer):
    """Multiplies by the head's weight without calling the head."""

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return nn.functional.linear(self.forward_head(self.forward_features(x), pre_logits=True), self.head.weight)


class OtherSwin(SwinTransformer):
    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward_features(x)


class Residual(Block):
    """Reads the stream a second time, as the float block does."""

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return super().forward(x, **options) + 0.1 * x


class ReadsTheNormTwice(Block):
    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return super().forward(x, **options) + 0.1 * self.norm1(x)


class ReadsInputsTwice(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.1 * x


@dataclass(frozen=True)
class Scale(Transform):
    """No exact rewrite."""

    def apply(self, model: nn.Module) -> None:
        model.get_parameter("blocks.0.mlp.fc1.weight").mul_(1.01)


DIFFERENT: dict[str, tuple[type, str]] = {
    "in_front": (Brighter, r"what lies between the images and patch_embed\.proj"),
    "behind": (Behind, r"what lies between blocks\.1 and head"),
    "head_not_called": (Past, r"goes past head\.input_quantizer"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_network_with_another_forward_is_refused(case: str) -> None:
    kind, message = DIFFERENT[case]
    with pytest.raises(IsvitError, match=message):
        check(retyped(tiny_vit(), kind))


def test_a_swin_with_another_forward_is_refused() -> None:
    with pytest.raises(IsvitError, match=r"lies between layers\.1\.blocks\.1 and head\.fc \(relative difference 2"):
        check(retyped(tiny_swin(), OtherSwin), size=32)


def test_a_subclass_that_changes_nothing_passes() -> None:
    check(retyped(tiny_vit(), Plain))
    check(retyped(tiny_vit(), type("Same", (VisionTransformer,), {})))
    check(retyped(tiny_swin(), type("Same", (SwinTransformer,), {})), size=32)


def test_a_mean_over_two_passes_is_kept() -> None:
    check(retyped(tiny_vit(), Flipped))


def test_what_a_block_adds_is_kept_unless_a_fold_would_break_it() -> None:
    model = tiny_vit()
    retyped(model.blocks[1], Residual)
    check(model)
    retyped(model.blocks[1], ReadsTheNormTwice)
    with pytest.raises(IsvitError, match=r"blocks\.1, where something else reads the norm in front of blocks\.1\."):
        check(model)
    check(model, read_recipe("round_to_nearest"))  # which folds nothing


def test_an_mlp_that_reads_its_norm_twice_is_refused() -> None:
    model = tiny_vit()
    retyped(model.blocks[0].mlp, ReadsInputsTwice)
    with pytest.raises(IsvitError, match=r"blocks\.0, where something else reads"):
        check(model)


def test_norms_that_two_blocks_share_are_refused() -> None:
    model = tiny_vit()
    model.blocks[1].norm1 = model.blocks[0].norm1
    with pytest.raises(IsvitError, match=r"blocks\.0, where something else reads the norm"):
        check(model)


def test_a_block_of_another_arithmetic_is_named() -> None:
    """A window attention whose softmax was exchanged, which no type tells."""
    model = tiny_swin()
    model.layers[1].blocks[0].attn.softmax = nn.Sigmoid()
    with pytest.raises(IsvitError, match=r"the float one in layers\.1\.blocks\.0 \(.*expected at most 0\.0001"):
        check(model, size=32)


def test_hooks_between_the_units_are_noticed() -> None:
    model = tiny_vit()
    model.norm.register_forward_hook(lambda _, __, output: output + 0)
    check(model)
    model.patch_embed.register_forward_hook(lambda _, __, output: 2 * output)
    with pytest.raises(IsvitError, match=r"what lies between patch_embed\.proj and blocks\.0"):
        check(model)


def test_a_transform_that_changes_the_network_is_refused() -> None:
    recipe = copy.copy(DEFAULT_RECIPE)
    object.__setattr__(recipe, "transforms", [Scale()])
    with pytest.raises(IsvitError, match=r"what model\.recipe\.transforms made of it"):
        check(tiny_vit(), recipe)
    object.__setattr__(recipe, "transforms", [RotateStream(), RotateHeads()])
    check(tiny_vit(), recipe)


def test_a_random_network_is_refused() -> None:
    with pytest.raises(IsvitError, match=r"gives other outputs for the same images each time .*random parts"):
        check(retyped(tiny_vit(), Noisy))


def test_dropout_of_a_network_in_training_mode_does_not_count() -> None:
    model = tiny_vit(proj_drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5, pos_drop_rate=0.5).train()
    check(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_images_that_the_network_does_not_take_are_refused() -> None:
    with pytest.raises(IsvitError, match=r"cannot read images of shape \(2, 3, 20, 20\) \(.*check the images"):
        check(tiny_vit(), size=20)


def test_nan_of_the_float_network_is_left_to_the_choice_of_ranges() -> None:
    model = tiny_vit()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.bias[0] = torch.nan
    check(model)


def test_nothing_is_drawn_or_changed() -> None:
    model, images = tiny_vit(), image_batch(16, 3)
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    require_equal_outputs(Calibration(model, images, Bits(), DEFAULT_RECIPE, Schedule()))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_one_line_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "isvit_lightning")
    check(tiny_vit())
    assert [record.getMessage() for record in caplog.records] == [
        "comparing the opened network with the float one on 2 calibration images"
    ]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_tiny_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "num_classes": 5}),
        ("vit_base_patch16_clip_224", {}),
        ("vit_base_patch16_siglip_gap_224", {"num_classes": 7}),
        ("vit_tiny_patch16_224", {"qk_norm": True, "drop_path_rate": 0.2}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24}),
    ],
)
def test_what_timm_ships_passes(name: str, options: dict[str, Any]) -> None:
    narrow = {} if name.startswith("swin") else {"embed_dim": 24, "depth": 3, "num_heads": 2}
    model = randomized(timm.create_model(name, **narrow, **options))
    check(model, size=model.patch_embed.img_size)
