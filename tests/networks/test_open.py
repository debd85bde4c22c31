"""Opening: what is copied, what is switched, what must be calibrated."""

import copy

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import (
    SINGLE,
    LayerFactory,
    Unit,
    Wire,
    adapter_for,
    open_float,
    open_quantized,
    quantizers,
    refresh,
    require_calibrated,
    switch,
)
from isvit_lightning.quantizers import Log, Role, Sulq, Uniform
from isvit_lightning.recipe import Bits, read_recipe
from tests.helpers import DEFAULT_RECIPE, image_batch, quantized_network, tiny_swin, tiny_vit

BUILDERS = {"vit": tiny_vit, "swin": tiny_swin}
SIZES = {"vit": 16, "swin": 32}
FAMILY = pytest.mark.parametrize("family", BUILDERS)


@FAMILY
def test_float_network_is_opened_in_place(family: str) -> None:
    model = BUILDERS[family]().train()
    opened = open_float(model)
    assert opened.model is model
    assert len(opened.wires) == {"vit": 4, "swin": 9}[family]
    assert opened.run is None
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert quantizers(model) == {}


@FAMILY
def test_quantized_network_is_a_copy(family: str) -> None:
    model = BUILDERS[family]().train()
    before, names = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_modules()]
    opened = quantized_network(model, image_batch(SIZES[family]))
    with torch.no_grad():
        for parameter in opened.model.parameters():
            parameter.add_(1)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@FAMILY
def test_every_layer_is_quantized(family: str) -> None:
    opened = DEFAULT_RECIPE.open(BUILDERS[family](), Bits())
    assert not any(type(module) in (nn.Linear, nn.Conv2d) for module in opened.model.modules())


@FAMILY
def test_quantizers_are_found_by_path(family: str) -> None:
    opened = DEFAULT_RECIPE.open(BUILDERS[family](), Bits())
    found = quantizers(opened.model)
    assert all(opened.model.get_submodule(name) is quantizer for name, quantizer in found.items())
    assert len({id(quantizer) for quantizer in found.values()}) == len(found)


@FAMILY
def test_bits_go_to_weights_and_activations(family: str) -> None:
    opened = DEFAULT_RECIPE.open(BUILDERS[family](), Bits(weight=3, activation=6))
    for quantizer in quantizers(opened.model).values():
        assert quantizer.bits == (3 if quantizer.role.weight else 6)


@FAMILY
def test_switch(family: str) -> None:
    opened = DEFAULT_RECIPE.open(BUILDERS[family](), Bits())
    for weights in (False, True):
        for activations in (False, True):
            switch(opened.model, weights=weights, activations=activations)
            for quantizer in quantizers(opened.model).values():
                assert quantizer.enabled is (weights if quantizer.role.weight else activations)


@FAMILY
def test_uncalibrated_network_is_refused_with_the_first_name(family: str) -> None:
    opened = DEFAULT_RECIPE.open(BUILDERS[family](), Bits())
    count = len(quantizers(opened.model))
    with pytest.raises(IsvitError, match=f"{count} quantizers.*patch_embed.proj.weight_quantizer"):
        require_calibrated(opened.model)
    with pytest.raises(IsvitError, match="before it was calibrated"):
        opened.model(image_batch(SIZES[family]))
    require_calibrated(quantized_network(BUILDERS[family](), image_batch(SIZES[family])).model)


@FAMILY
def test_recipes_choose_the_format_of_the_softmax(family: str) -> None:
    formats = {"isvit": Sulq(0, 1), "isvit_published": Sulq(1, 1), "repq": Log(2), "round_to_nearest": Uniform()}
    for name, form in formats.items():
        opened = read_recipe(name).open(BUILDERS[family](), Bits())
        found = [q for q in quantizers(opened.model).values() if q.role == Role.ATTN_PROB]
        assert found
        assert all(quantizer.format == form for quantizer in found)


def test_what_has_no_quantizer_stays_float() -> None:
    model, images = tiny_vit(), image_batch()
    opened = open_quantized(model, lambda role, axes: None)
    assert quantizers(opened.model) == {}
    torch.testing.assert_close(opened.model(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_factory_that_is_given_knows_what_it_was_asked_for() -> None:
    factory = LayerFactory(lambda role, axes: None)
    open_quantized(tiny_vit(), factory)
    assert {role.name for role in factory.roles} == {
        "attn_prob", "fc1_in", "gelu_out", "head_in", "image", "key", "norm_in", "proj_in", "qkv_in", "query", "value",
        "weight",
    }  # fmt: skip


def test_units_that_read_the_images_anew_are_reconstructed_by_option() -> None:
    class Branched(nn.Sequential):
        """Two layers, of which the second one is reached from the images alone."""

    class BranchedAdapter:
        def __init__(self, model: Branched) -> None:
            self.model = model

        def insert(self, factory: LayerFactory) -> None:
            self.model[0] = factory.linear(self.model[0], Role.QKV_IN)
            self.model[1] = factory.linear(self.model[1], Role.HEAD_IN)

        def units(self) -> tuple[Unit, ...]:
            first = Unit("0", self.model[0], lambda images: images.flatten(1))
            source = lambda model, images: {SINGLE: model[0](images.flatten(1))}  # noqa: E731
            return first, Unit("1", self.model[1], lambda value: value, source)

        def wires(self) -> tuple[Wire, ...]:
            return ()

    adapter_for.register(Branched)(BranchedAdapter)  # type: ignore[attr-defined]
    model = Branched(nn.Linear(12, 3), nn.Linear(3, 2))
    build = DEFAULT_RECIPE.placement.build(Bits())
    for reconstruct, names in (("backbone", ["0"]), ("all", ["0", "1"])):
        for opened in (open_quantized(model, build, reconstruct), open_float(model, reconstruct)):  # type: ignore[arg-type]
            assert [unit.name for unit in opened.units] == names


@FAMILY
def test_grids_that_were_changed_from_outside_are_noticed_after_a_refresh(family: str) -> None:
    opened = DEFAULT_RECIPE.open(BUILDERS[family](), Bits())
    for quantizer in quantizers(opened.model).values():
        for number in quantizer.grid:
            number.fill_(1)
    assert not any(quantizer.calibrated for quantizer in quantizers(opened.model).values())
    refresh(opened.model)
    assert all(quantizer.calibrated for quantizer in quantizers(opened.model).values())


@FAMILY
def test_opened_network_is_copied_with_its_units(family: str) -> None:
    images = image_batch(SIZES[family])
    opened = quantized_network(BUILDERS[family](), images)
    twin = copy.deepcopy(opened)
    with torch.no_grad():
        for parameter in opened.model.parameters():
            parameter.zero_()
    assert torch.equal(twin.walk(images), twin.model(images))
    assert twin.walk(images).count_nonzero() > 0


@FAMILY
def test_bits_out_of_range_are_refused(family: str) -> None:
    with pytest.raises(IsvitError, match=r"model\.bits\.activation is 9, expected 2 to 8"):
        DEFAULT_RECIPE.open(BUILDERS[family](), Bits(activation=9))
