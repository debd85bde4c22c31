"""Units of one tensor and of several, and the walk through them."""

import torch
from torch import nn

from isvit_lightning.networks import SINGLE, Data, OpenedNetwork, Unit, Wire, open_float
from isvit_lightning.recipe import Bits
from tests.helpers import DEFAULT_RECIPE, image_batch, tiny_vit


def test_a_unit_of_one_tensor_wraps_it_in_a_name() -> None:
    layer, rows = nn.Linear(3, 2), torch.randn(4, 3)
    unit = Unit("layer", layer, lambda value: -value)
    entered, outputs = unit.entered({SINGLE: rows}), unit({SINGLE: rows})
    assert list(entered) == list(outputs) == [SINGLE]
    assert torch.equal(entered[SINGLE], -rows)
    assert torch.equal(outputs[SINGLE], layer(rows))


class Swap(nn.Module):
    """Two tensors in and out."""

    def forward(self, data: Data) -> Data:
        return {"boxes": data["scores"], "scores": data["boxes"]}


def test_a_named_unit_gets_and_gives_its_tensors_by_name() -> None:
    boxes, scores = torch.randn(2, 3), torch.randn(2, 5)
    outputs = Unit("swap", Swap(), lambda value: value, named=True)({"boxes": boxes, "scores": scores})
    assert outputs["boxes"] is scores
    assert outputs["scores"] is boxes


def test_the_walk_enters_every_unit_and_then_runs_it() -> None:
    units = (
        Unit("add", nn.Identity(), lambda value: value + 1),
        Unit("double", nn.Identity(), lambda value: value * 2),
    )
    assert OpenedNetwork(nn.Identity(), units).walk(torch.tensor(3.0)) == 8


def test_a_network_of_which_a_part_is_units_runs_as_a_whole() -> None:
    """An adapter with ``run`` has its quantizers met by that pass, also those outside the units."""
    model, passes = tiny_vit(), []
    opened = OpenedNetwork(model, open_float(model).units, run=passes.append)
    images = image_batch(16)
    opened.walk(images)
    assert len(passes) == 1
    assert passes[0] is images
    assert DEFAULT_RECIPE.open(model, Bits()).run is None


def test_the_padding_of_a_wire_is_looked_up_anew() -> None:
    """Moving a network (here to another type) replaces its buffers."""
    padded = nn.Module()
    padded.register_buffer("pad_value", torch.ones(3))
    wire = Wire("qkv", "block", nn.LayerNorm(3), (nn.Linear(3, 3),), padded)
    before = wire.pad_value
    padded.double()
    assert before is not None
    assert wire.pad_value is padded.get_buffer("pad_value") is not before
    assert Wire("qkv", "block", nn.LayerNorm(3), ()).pad_value is None
