"""Rotations change nothing but rounding, in float64, on every architecture that they claim."""

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.transforms import RotateHeads, RotateStream, Transform
from isvit_lightning.transforms.rotate import random_rotation, rotation_keeping_ones
from tests.helpers import double_precision, image_batch, relative_change, tiny_swin, tiny_vit

VITS = {
    "class token": {},
    "average pooling": {"global_pool": "avg", "class_token": False, "fc_norm": True},
    "LayerScale": {"init_values": 0.3},
    "registers": {"reg_tokens": 2},
    "no bias": {"qkv_bias": False},
}


def changed(model: nn.Module, transform: Transform, images: torch.Tensor) -> tuple[float, float]:
    """Relative change of the logits and of the weights."""
    rotated = copy.deepcopy(model)
    transform.apply(rotated)
    before = torch.cat([weight.flatten() for weight in model.parameters()])
    after = torch.cat([rotated.get_parameter(name).flatten() for name, _ in model.named_parameters()])
    return relative_change(rotated(images), model(images)), relative_change(after, before)


@pytest.mark.parametrize("kind", VITS)
@pytest.mark.parametrize("transform", [RotateHeads(), RotateStream()], ids=lambda one: type(one).__name__)
def test_a_vit_stays_what_it_was(kind: str, transform: Transform) -> None:
    with double_precision():
        model, images = tiny_vit(**VITS[kind]), image_batch()
    logits, weights = changed(model, transform, images)
    assert logits < 1e-9
    assert weights > 0.1


def test_a_swin_keeps_what_its_heads_give() -> None:
    with double_precision():
        model, images = tiny_swin(), image_batch(32)
    logits, weights = changed(model, RotateHeads(), images)
    assert logits < 1e-9
    assert weights > 0.1


def test_norms_of_queries_and_keys_are_left_in_peace() -> None:
    with double_precision():
        model, images = tiny_vit(qk_norm=True), image_batch()
    logits, weights = changed(model, RotateHeads(), images)
    assert logits < 1e-9
    assert weights > 0.01


def test_a_stream_that_the_adapter_does_not_tell_is_refused() -> None:
    with pytest.raises(IsvitError, match="RotateStream"):
        RotateStream().apply(tiny_swin())


def test_a_norm_before_the_first_block_is_refused() -> None:
    with pytest.raises(IsvitError, match="no rotation can pass"):
        RotateStream().apply(tiny_vit(pre_norm=True))


def test_matrices_are_orthogonal_and_one_keeps_the_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    for matrix in (random_rotation(8, generator), rotation_keeping_ones(8, generator)):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(8, dtype=torch.float64), atol=1e-12, rtol=0)
    ones = torch.ones(8, dtype=torch.float64)
    torch.testing.assert_close(rotation_keeping_ones(8, generator) @ ones, ones, atol=1e-12, rtol=0)


def test_outliers_of_a_channel_are_spread_over_its_head() -> None:
    model = tiny_vit()
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[3].mul_(30)
    peaks = []
    for network in (model, _rotated(model)):
        query = network.blocks[0].attn.qkv(torch.randn(50, 16))[:, :8]
        peaks.append(float(query.abs().amax(dim=0).max() / query.abs().amax(dim=0).mean()))
    assert peaks[1] < peaks[0] / 2


def _rotated(model: VisionTransformer) -> VisionTransformer:
    rotated = copy.deepcopy(model)
    RotateHeads().apply(rotated)
    return rotated


def test_a_recipe_rotates_a_copy() -> None:
    model, recipe = tiny_vit(), read_recipe("isvit_rotated")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    transformed = recipe.transformed(model)
    assert transformed is not model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert recipe.open(transformed, Bits(3, 3)).units
    assert read_recipe("isvit").transformed(model) is model


def test_the_rotated_recipe_is_the_default_one_but_for_its_rotation() -> None:
    rotated, plain = read_recipe("isvit_rotated"), read_recipe("isvit")
    assert (rotated.steps, rotated.placement) == (plain.steps, plain.placement)
    assert rotated.transforms == [RotateHeads()]
