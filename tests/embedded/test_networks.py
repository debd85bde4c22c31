"""The shipped networks: size, accuracy, and that the rest of the package can open them."""

from importlib.resources import files
from typing import cast, get_args

import pytest
import torch

from isvit_lightning.embedded import EmbeddedName, digit_images, embedded_network
from isvit_lightning.embedded.networks import build_network, weights_file
from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import open_float
from tools.train_classifiers import top1

NAMES: tuple[EmbeddedName, ...] = get_args(EmbeddedName)


@pytest.mark.parametrize("name", NAMES)
def test_network_reads_held_out_digits(name: EmbeddedName) -> None:
    assert top1(embedded_network(name), *digit_images("held_out")) >= 97


@pytest.mark.parametrize("name", NAMES)
def test_network_is_small(name: EmbeddedName) -> None:
    parameters = sum(parameter.numel() for parameter in build_network(name).parameters())
    assert 200_000 <= parameters <= 700_000
    assert len(files("isvit_lightning.embedded").joinpath(weights_file(name)).read_bytes()) < 2_000_000


@pytest.mark.parametrize("name", NAMES)
def test_network_is_float32_in_evaluation_mode(name: EmbeddedName) -> None:
    network = embedded_network(name)
    assert not network.training
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_network_opens_into_equal_units(name: EmbeddedName) -> None:
    images, _ = digit_images("held_out")
    opened = open_float(embedded_network(name))
    torch.testing.assert_close(opened.walk(images[:4]), opened.model(images[:4]))


def test_unknown_network_is_refused() -> None:
    with pytest.raises(IsvitError, match="expected one of vit_digits, swin_digits"):
        embedded_network(cast("EmbeddedName", "resnet_digits"))
