"""Gradients of a drawn class, against automatic differentiation and the Hessian that they stand for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantLinear, QuantMatMul
from isvit_lightning.networks import OpenedNetwork, Unit, open_quantized, output_gradients, quantizers, switch
from isvit_lightning.recipe import Bits, read_recipe
from tests.helpers import image_batch, quantized_network, tiny_swin, tiny_vit


def chain(*modules: nn.Module, run: Callable[[torch.Tensor], object] | None = None) -> OpenedNetwork:
    model = nn.Sequential(*modules).requires_grad_(False)
    return OpenedNetwork(model, (Unit("", model, lambda x: x),), run=run)


def test_the_mean_of_their_squares_is_the_diagonal_of_the_hessian_of_the_divergence() -> None:
    first, last = QuantLinear(nn.Linear(3, 4), None, None), QuantLinear(nn.Linear(4, 3), None, None)
    network, image = chain(first, nn.Tanh(), last), torch.randn(1, 3)
    found = output_gradients(network, image.expand(40_000, 3), [first])[first]
    output = first(image)[0].detach()
    target = last(output.tanh()).softmax(-1)

    def divergence(value: torch.Tensor) -> torch.Tensor:
        return (target * (target.log() - last(value.tanh()).log_softmax(-1))).sum()

    hessian: Any = torch.autograd.functional.hessian(divergence, output)
    torch.testing.assert_close(found.square().mean(0), hessian.diagonal(), rtol=0.05, atol=1e-4)


@pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
def test_each_image_has_its_own_and_quantizers_are_switched_off_meanwhile(build: type, size: int) -> None:
    images = image_batch(size, 20)
    network = quantized_network(build(), images)
    layers = [m for m in network.model.modules() if isinstance(m, QuantLinear | QuantMatMul)]
    shapes: dict[nn.Module, torch.Size] = {}
    handles = [m.register_forward_hook(lambda m, _, out: shapes.update({m: out.shape})) for m in layers]
    network.walk(images)
    for handle in handles:
        handle.remove()
    found = output_gradients(network, images, layers)
    assert all(one.enabled for one in quantizers(network.model).values())
    assert {layer: gradient.shape for layer, gradient in found.items()} == shapes
    assert all(bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0 for gradient in found.values())
    switch(network.model, weights=False, activations=False)
    again = output_gradients(network, images, layers)
    assert all(torch.equal(found[layer], again[layer]) for layer in layers)
    assert not any(one.enabled for one in quantizers(network.model).values())
    other = output_gradients(network, images, layers, seed=1)
    assert not all(torch.equal(found[layer], other[layer]) for layer in layers)


def test_the_last_gradient_is_the_drawn_class_less_the_prediction() -> None:
    network = open_quantized(tiny_vit(), read_recipe("round_to_nearest").placement.build(Bits()))
    images = image_batch(16, 5)
    (gradient,) = output_gradients(network, images, [network.model.head]).values()  # type: ignore[list-item]
    switch(network.model, weights=False, activations=False)
    with torch.no_grad():
        drawn = gradient + network.model(images).softmax(-1)
    torch.testing.assert_close(drawn, nn.functional.one_hot(drawn.argmax(1), 5).float())


def test_what_is_no_classifier_is_refused() -> None:
    layer = QuantLinear(nn.Linear(3, 3), None, None)
    for network in (
        chain(layer, layer),
        chain(layer, run=lambda images: [layer(images)]),
        chain(layer, nn.Unflatten(1, (3, 1))),
    ):
        with pytest.raises(IsvitError, match="set by_gradients to false"):
            output_gradients(network, torch.rand(2, 3), [layer])
