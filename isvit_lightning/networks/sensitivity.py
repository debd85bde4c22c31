"""How much the prediction of a network hangs on the output of each of its layers."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks.open import quantizers
from isvit_lightning.networks.opened import OpenedNetwork

_CHUNK = 16
"""Images that pass at once; what a pass keeps for the way back would be the peak of memory."""


def output_gradients(
    network: OpenedNetwork, images: torch.Tensor, layers: Collection[nn.Module], seed: int = 0
) -> dict[nn.Module, torch.Tensor]:
    """Gradients of the log-likelihood of a class that the float network draws, by the outputs of layers.

    The mean of their squares is the diagonal of the Hessian of the divergence from the float prediction, where that is
    zero: the Fisher information. The gradient of the divergence itself vanishes there.

    Args:
        network: a classifier; its quantizers are switched off meanwhile.
        images: ``(n, 3, height, width)``.
        layers: those whose outputs are meant; each is met once in a pass.
        seed: of the draws.

    Returns:
        For each layer, ``(n, …)`` in the shape of its output.

    Raises:
        IsvitError: the network gives no logits, or meets a layer several times.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in layers}
    with _float(network.model), torch.enable_grad():
        for part in torch.split(images, _CHUNK):
            outputs = _outputs(network, part, layers)
            logits = outputs.pop(network.model)
            if logits.dim() != 2 or len(outputs) != len(layers):
                raise _refusal()
            classes = torch.multinomial(logits.detach().softmax(dim=1).cpu(), 1, generator=generator)
            likelihood = logits.log_softmax(dim=1).gather(1, classes.to(logits.device)).sum()
            for layer, gradient in zip(outputs, torch.autograd.grad(likelihood, list(outputs.values())), strict=True):
                found[layer].append(gradient)
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def _outputs(
    network: OpenedNetwork, images: torch.Tensor, layers: Collection[nn.Module]
) -> dict[nn.Module, torch.Tensor]:
    """What each layer gives for ``images``, and what the network does."""
    outputs: dict[nn.Module, torch.Tensor] = {}

    def keep(layer: nn.Module, _args: Any, output: torch.Tensor) -> None:
        if layer in outputs:
            raise _refusal()
        outputs[layer] = output

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        given = network.walk(images.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(given, torch.Tensor):
        raise _refusal()
    return outputs | {network.model: given}


def _refusal() -> IsvitError:
    return IsvitError(
        "A search wants gradients where the network gives no logits or uses a layer several times, expected a plain "
        "classifier: set by_gradients to false under model.recipe.placement."
    )


@contextmanager
def _float(model: nn.Module) -> Iterator[None]:
    """All quantizers below ``model`` are switched off meanwhile."""
    enabled = [one for one in quantizers(model).values() if one.enabled]
    for quantizer in enabled:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer in enabled:
            quantizer.enabled = True
