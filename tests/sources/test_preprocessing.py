"""From an image to the input of a network: what a network asks for, and values that nothing could be made with."""

from typing import Any, get_args

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from isvit_lightning.embedded.networks import EmbeddedName, build_network
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.preprocessing import Interpolation, Preprocessing

DEFAULTS = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def test_the_transform_resizes_crops_and_normalizes() -> None:
    transform = Preprocessing((3, 8, 6), mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0), crop_pct=0.5).transform()
    tensor = transform(Image.new("RGB", (40, 30), (255, 255, 0)))
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 8, 6)
    assert torch.equal(tensor, torch.tensor([2.0, 1.0, -0.5]).view(3, 1, 1).expand(3, 8, 6))


def test_the_crop_is_central_and_as_large_as_its_share() -> None:
    image = Image.new("RGB", (40, 40))
    image.paste((255, 255, 255), (10, 10, 30, 30))
    values = {"input_size": (3, 8, 8), "mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "box"}
    assert Preprocessing(**values, crop_pct=0.5).transform()(image).eq(1).all()
    whole = Preprocessing(**values).transform()(image)
    assert whole[0].sum() == 16
    assert whole[:, 2:6, 2:6].eq(1).all()


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_every_interpolation_is_one_of_timm(interpolation: Interpolation) -> None:
    transform = Preprocessing(**DEFAULTS, interpolation=interpolation).transform()
    assert transform(Image.new("RGB", (20, 10), (255, 255, 255))).eq(1).all()


def test_one_channel_holds_the_gray_values_of_the_file() -> None:
    transform = Preprocessing((1, 4, 64), mean=(0.25,), std=(0.5,), interpolation="nearest").transform()
    gray = Image.frombytes("L", (64, 4), bytes(range(256)))
    expected = (torch.arange(256).view(1, 4, 64) / 255 - 0.25) / 0.5
    assert torch.equal(transform(gray), expected)
    assert torch.equal(transform(gray.convert("RGB")), expected)
    red = transform(Image.new("RGB", (64, 4), (255, 0, 0)))
    torch.testing.assert_close(red, torch.full((1, 4, 64), (76 / 255 - 0.25) / 0.5))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_one_channel_in_every_way_of_cropping(mode: str) -> None:
    transform = Preprocessing((1, 8, 8), mean=(0.5,), std=(0.5,), crop_pct=0.9, crop_mode=mode).transform()
    assert transform(Image.new("L", (20, 20), 255)).eq(1).all()


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_inputs_than_images_have_no_transform(channels: int) -> None:
    values = (0.5,) * channels
    with pytest.raises(
        IsvitError, match=rf"reads inputs of {channels} channels, expected 1 .* or 3 .*: change in_chans"
    ):
        Preprocessing((channels, 8, 8), values, values).transform()


@pytest.mark.parametrize("channels", [1, 4])
def test_metadata_of_other_channels_is_averaged(channels: int) -> None:
    model = timm.create_model("deit_tiny_patch16_224.fb_in1k", depth=1, in_chans=channels)
    found = Preprocessing.of(model)
    assert found.input_size == (channels, 224, 224)
    assert found.mean == pytest.approx((0.449,) * channels)
    assert found.std == pytest.approx((0.226,) * channels)


def test_metadata_of_timm_decides_at_the_networks_own_size() -> None:
    model = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", img_size=(32, 48), depth=1)
    assert Preprocessing.of(model) == Preprocessing((3, 32, 48), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")
    model = timm.create_model("deit_tiny_patch16_224.fb_in1k", depth=1)
    assert Preprocessing.of(model).input_size == (3, 224, 224)
    assert Preprocessing.of(model).mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", get_args(EmbeddedName))
def test_networks_in_the_package_see_values_from_minus_one_to_one(name: EmbeddedName) -> None:
    assert Preprocessing.of(build_network(name)) == Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)


def test_a_network_without_metadata_takes_the_defaults_of_timm() -> None:
    found = Preprocessing.of(nn.Linear(2, 2))
    assert (found.input_size, found.mean) == ((3, 224, 224), (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"mean": (0.5, float("nan"), 0.5)}, "mean"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"mean": (0.5,)}, "mean"),
        ({"input_size": (1, 8, 8), "std": (0.5,)}, "mean"),
        ({"std": (0.5, 0.0, 0.5)}, "std"),
        ({"std": ("a", "b", "c")}, "std"),
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"crop_pct": "most"}, "crop_pct"),
        ({"crop_pct": float("inf")}, "crop_pct"),
        ({"interpolation": "guess"}, "interpolation"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], option: str) -> None:
    with pytest.raises(IsvitError, match=rf"^The preprocessing has {option} .*: correct model.network.{option}.$"):
        Preprocessing(**{**DEFAULTS, **values})


@pytest.mark.parametrize("size", [(3, 0, 8), (3, 8), "8x8", (3, 8, float("inf")), (3, 8.0, 8.0)])
def test_an_input_size_out_of_range(size: Any) -> None:
    with pytest.raises(IsvitError, match=r"input size is .* correct input_size in model.network.description"):
        Preprocessing(**{**DEFAULTS, "input_size": size})
