"""Opening: what is copied, what is switched, what must be calibrated."""

import copy

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import OpenedNetwork, open_float, open_quantized, quantizers, require_calibrated, switch
from isvit_lightning.quantizers import LogQuantizer, PerTensor, Role, SulqQuantizer, UniformQuantizer
from isvit_lightning.recipe.method import Bits, Method, repq, round_to_nearest
from tests.helpers import image_batch, quantized_network, tiny_swin, tiny_vit

BUILDERS = {"vit": tiny_vit, "swin": tiny_swin}
SIZES = {"vit": 16, "swin": 32}
FAMILY = pytest.mark.parametrize("family", BUILDERS)


@FAMILY
def test_float_network_is_opened_in_place(family: str) -> None:
    model = BUILDERS[family]().train()
    opened = open_float(model)
    assert opened.model is model
    assert opened.pairs == ()
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
    opened = open_quantized(BUILDERS[family](), Bits(), Method())
    assert not any(type(module) in (nn.Linear, nn.Conv2d) for module in opened.model.modules())


@FAMILY
def test_quantizers_are_found_by_path(family: str) -> None:
    opened = open_quantized(BUILDERS[family](), Bits(), Method())
    found = quantizers(opened.model)
    assert all(opened.model.get_submodule(name) is quantizer for name, quantizer in found.items())
    assert len({id(quantizer) for quantizer in found.values()}) == len(found)


@FAMILY
def test_bits_go_to_weights_and_activations(family: str) -> None:
    opened = open_quantized(BUILDERS[family](), Bits(weight=3, activation=6), Method())
    for quantizer in quantizers(opened.model).values():
        assert quantizer.bits == (3 if quantizer.role is Role.WEIGHT else 6)


@FAMILY
def test_switch(family: str) -> None:
    opened = open_quantized(BUILDERS[family](), Bits(), Method())
    for weights in (False, True):
        for activations in (False, True):
            switch(opened.model, weights=weights, activations=activations)
            for quantizer in quantizers(opened.model).values():
                assert quantizer.enabled is (weights if quantizer.role is Role.WEIGHT else activations)


@FAMILY
def test_uncalibrated_network_is_refused_with_the_first_name(family: str) -> None:
    opened = open_quantized(BUILDERS[family](), Bits(), Method())
    count = len(quantizers(opened.model))
    with pytest.raises(IsvitError, match=f"{count} quantizers.*patch_embed.proj.weight_quantizer"):
        require_calibrated(opened.model)
    with pytest.raises(IsvitError, match="before it was calibrated"):
        opened.model(image_batch(SIZES[family]))
    require_calibrated(quantized_network(BUILDERS[family](), image_batch(SIZES[family])).model)


@FAMILY
@pytest.mark.parametrize("method", [Method(), repq(), Method(softmax="log2"), Method(statistic="median")])
def test_finished_state_loads_into_a_deployed_network(family: str, method: Method) -> None:
    # Without biases the fold has to make some, which a deployed network must have room for.
    model, images = BUILDERS[family](qkv_bias=False), image_batch(SIZES[family])
    finished = quantized_network(model, images, method=method)
    deployed = open_quantized(model, Bits(), method, deployed=True)
    deployed.model.load_state_dict(finished.model.state_dict())
    require_calibrated(deployed.model)
    assert torch.equal(deployed.model(images), finished.model(images))


@FAMILY
def test_deployed_activations_are_per_tensor(family: str) -> None:
    for method in (Method(), repq(), round_to_nearest()):
        opened = open_quantized(BUILDERS[family](), Bits(), method, deployed=True)
        for quantizer in quantizers(opened.model).values():
            assert quantizer.role is Role.WEIGHT or quantizer.granularity == PerTensor()


@FAMILY
def test_methods_choose_the_softmax_quantizer(family: str) -> None:
    for method, kind in ((Method(), SulqQuantizer), (repq(), LogQuantizer), (round_to_nearest(), UniformQuantizer)):
        opened = open_quantized(BUILDERS[family](), Bits(), method)
        found = [q for q in quantizers(opened.model).values() if q.role is Role.ATTN_PROB]
        assert found
        assert all(type(quantizer) is kind for quantizer in found)


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
        open_quantized(BUILDERS[family](), Bits(activation=9), Method())


def test_a_network_of_which_a_part_is_units_runs_as_a_whole() -> None:
    """An adapter with ``run`` has its quantizers met by that pass, also those outside the units."""
    model, passes = tiny_vit(), []
    opened = OpenedNetwork(model, open_float(model).units, run=passes.append)
    images = image_batch(16)
    opened.walk(images)
    assert len(passes) == 1
    assert passes[0] is images
    assert open_quantized(model, Bits(), Method()).run is None
