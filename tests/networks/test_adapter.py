"""Dispatch on the type of a network, and its refusals."""

import pytest
import timm
import torch
from timm.layers import Mlp
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import LayerFactory, Unit, Wire, adapter_for, open_float
from isvit_lightning.networks.adapter import expect_type
from isvit_lightning.networks.swin import SwinAdapter
from isvit_lightning.networks.vit import VitAdapter
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe import Bits
from tests.helpers import DEFAULT_RECIPE, tiny_swin, tiny_vit


def test_adapter_by_type() -> None:
    assert isinstance(adapter_for(tiny_vit()), VitAdapter)
    assert isinstance(adapter_for(tiny_swin()), SwinAdapter)


def test_unknown_network_is_named() -> None:
    with pytest.raises(IsvitError, match=r"timm\.models\.resnet\.ResNet.*supported are.*model\.network\.name"):
        open_float(timm.create_model("resnet18", num_classes=2))


def test_expect_type_names_path_and_both_types() -> None:
    expect_type(Mlp(4), "blocks.3.mlp", Mlp)
    with pytest.raises(IsvitError, match=r"blocks\.3\.mlp: it is a Linear, supported is Mlp"):
        expect_type(nn.Linear(2, 2), "blocks.3.mlp", Mlp)


class Perceptron(nn.Module):
    """An architecture that the package does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1))  # type: ignore[no-any-return]


class PerceptronAdapter:
    """What docs/architectures.md asks a user to write."""

    def __init__(self, model: Perceptron) -> None:
        self.model = model

    def insert(self, factory: LayerFactory) -> None:
        self.model.head = factory.linear(self.model.head, Role.HEAD_IN)

    def units(self) -> tuple[Unit, ...]:
        return (Unit("head", self.model.head, lambda images: images.flatten(1)),)

    def wires(self) -> tuple[Wire, ...]:
        return ()


def test_another_architecture_is_registered_from_outside() -> None:
    adapter_for.register(Perceptron)(PerceptronAdapter)  # type: ignore[attr-defined]
    model, images = Perceptron(), torch.randn(2, 3, 2, 2)
    assert torch.equal(open_float(model).walk(images), model(images))
    opened = DEFAULT_RECIPE.open(model, Bits())
    assert [unit.name for unit in opened.units] == ["head"]
