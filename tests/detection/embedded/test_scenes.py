"""Scenes of digits: what is drawn is what is annotated, by seed and number alone, and splits share no digit."""

from typing import Any, cast

import pytest
import torch

from detection.embedded.scenes import Scene, SceneStyle, digit_scene, mask_boxes
from isvit_lightning.embedded import Split, digit_images
from isvit_lightning.errors import IsvitError


def same(first: Scene, second: Scene) -> bool:
    pairs = [(first.image, second.image), (first.labels, second.labels), (first.masks, second.masks)]
    return all(one.shape == other.shape and torch.equal(one, other) for one, other in pairs)


def test_shapes_and_types() -> None:
    scenes = [digit_scene("train", number) for number in range(40)]
    for scene in scenes:
        count = len(scene.labels)
        assert scene.image.shape == (3, 128, 128)
        assert scene.image.dtype == torch.uint8
        assert scene.masks.shape == (count, 128, 128)
        assert scene.boxes.shape == (count, 4)
        assert 1 <= count <= 5
        assert scene.masks.flatten(1).any(dim=1).all()
    assert {len(scene.labels) for scene in scenes} == {1, 2, 3, 4, 5}


def test_seed_split_and_number_decide() -> None:
    scene = digit_scene("train", 3, seed=1)
    torch.rand(1)
    assert same(scene, digit_scene("train", 3, seed=1))
    assert not same(scene, digit_scene("train", 4, seed=1))
    assert not same(scene, digit_scene("train", 3, seed=2))
    assert not same(scene, digit_scene("held_out", 3, seed=1))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_labels_are_those_of_the_digits_of_the_split(split: Split) -> None:
    _, labels = digit_images(split)
    for number in range(5):
        scene = digit_scene(split, number)
        assert torch.equal(scene.labels, labels[scene.digits])


def test_masks_do_not_overlap_and_boxes_fit_them() -> None:
    for number in range(10):
        scene = digit_scene("train", number)
        assert scene.masks.sum(dim=0).max() <= 1
        for mask, (left, top, right, bottom) in zip(scene.masks, scene.boxes.int().tolist(), strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum()
            for edge in (mask[top, :], mask[bottom - 1, :], mask[:, left], mask[:, right - 1]):
                assert edge.any()


def test_digits_stand_out_from_what_surrounds_them() -> None:
    plain = SceneStyle(texture=0, noise=0, max_objects=1)
    for number in range(10):
        scene = digit_scene("train", number, style=plain)
        background = scene.image[:, 0, 0].float()
        inside = scene.image[:, scene.masks[0]].float().mean(dim=1)
        assert (inside - background).abs().max() > 40


def test_style_is_kept() -> None:
    style = SceneStyle(size=(64, 96), min_objects=2, max_objects=2, min_side=20, max_side=24, max_cover=0)
    for number in range(6):
        scene = digit_scene("train", number, style=style)
        assert scene.image.shape == (3, 64, 96)
        assert len(scene.labels) == 2
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert sides.max() <= 24


def test_a_scene_without_a_digit() -> None:
    scene = digit_scene("train", 0, style=SceneStyle(min_objects=0, max_objects=0))
    assert scene.masks.shape == (0, 128, 128)
    assert scene.boxes.shape == (0, 4)
    assert len(scene.labels) == 0


def test_boxes_of_masks() -> None:
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 1:4, 2:7] = True
    masks[1, 5, 0] = True
    assert mask_boxes(masks).tolist() == [[2, 1, 7, 4], [0, 5, 1, 6]]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"min_objects": 3, "max_objects": 2}, "min_objects <= max_objects"),
        ({"max_side": 200}, "<= the canvas"),
        ({"min_side": 4}, "expected 8 <="),
    ],
)
def test_impossible_styles(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(IsvitError, match=message):
        SceneStyle(**choice)


def test_unknown_split() -> None:
    with pytest.raises(IsvitError, match="expected one of train, held_out"):
        digit_scene(cast("Split", "test"), 0)
