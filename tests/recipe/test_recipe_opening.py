"""What a recipe makes of a network that it opens."""

import torch
from torch import nn

from isvit_lightning.networks import LayerFactory, quantizers
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe import Bits, Choice, Placement, Recipe, read_recipe, recipe_names
from isvit_lightning.search import Percentiles
from isvit_lightning.stages import Tune
from tests.helpers import tiny_vit

NETWORK = tiny_vit(depth=1)


def test_opening_leaves_the_network_untouched() -> None:
    before = {name: tensor.clone() for name, tensor in NETWORK.state_dict().items()}
    read_recipe("isvit").open(NETWORK, Bits()).model.blocks[0].mlp.fc1.weight.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in NETWORK.state_dict().items())
    assert not quantizers(NETWORK)


class _TwoLayers(nn.Module):
    """A layer of each kind whose inputs have the same role, without searches."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        factory = LayerFactory(recipe.placement.build(Bits()))
        self.conv = factory.conv(nn.Conv2d(3, 4, 2), Role("neck_in"))
        self.linear = factory.linear(nn.Linear(3, 4), Role("neck_in"))
        for quantizer in quantizers(self).values():
            quantizer.search = None


def test_searches_are_given_by_role_and_kind_of_layer() -> None:
    searches = {name: Percentiles((value,)) for name, value in (("map", 0.8), ("linear", 0.9), ("weight", 0.99))}
    placement = Placement(
        weight=Choice(granularity="channel", search=searches["weight"]),
        linear_in=Choice(search=searches["linear"]),
        map_in=Choice(search=searches["map"]),
    )
    given = Recipe(steps=[Tune()], placement=placement)
    model = _TwoLayers(given)
    given.give_searches(model)
    assert {name: quantizer.search for name, quantizer in quantizers(model).items()} == {
        "conv.input_quantizer": searches["map"],
        "linear.input_quantizer": searches["linear"],
        "conv.weight_quantizer": searches["weight"],
        "linear.weight_quantizer": searches["weight"],
    }


def test_given_searches_are_those_of_an_opened_network() -> None:
    for name in recipe_names():
        opened = read_recipe(name).open(NETWORK, Bits()).model
        before = {path: quantizer.search for path, quantizer in quantizers(opened).items()}
        for quantizer in quantizers(opened).values():
            quantizer.search = None
        read_recipe(name).give_searches(opened)
        assert {path: quantizer.search for path, quantizer in quantizers(opened).items()} == before
