"""Augmentation: seeded, different per image, and nothing but the identity when switched off."""

import torch

from isvit_lightning.embedded import digit_images
from tools.augment import BACKGROUND, Augmentation, augment


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_no_distortion_is_the_identity() -> None:
    images = digit_images("train")[0][:5]
    torch.testing.assert_close(augment(images, Augmentation(0, 0, 0), seeded()), images, atol=1e-4, rtol=0)


def test_seed_decides() -> None:
    images = digit_images("train")[0][:5]
    assert torch.equal(augment(images, Augmentation(), seeded()), augment(images, Augmentation(), seeded()))


def test_every_image_is_distorted_on_its_own() -> None:
    images = digit_images("train")[0][:1].repeat(2, 1, 1, 1)
    first, second = augment(images, Augmentation(), seeded())
    assert not torch.equal(first, second)


def test_outside_is_background() -> None:
    images = torch.ones(64, 3, 32, 32)
    moved = augment(images, Augmentation(degrees=0, shift=0.5, scale=0), seeded())
    assert moved.min() == BACKGROUND
    assert moved.max() <= 1
