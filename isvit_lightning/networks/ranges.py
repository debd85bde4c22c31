"""Choosing the grids of the quantizers of a module from data."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from isvit_lightning.layers import QuantConv2d, QuantLinear, QuantMatMul
from isvit_lightning.networks.open import quantizers
from isvit_lightning.quantizers import Operand, PerTensor, Quantizer, Site

Gradients = Mapping[nn.Module, torch.Tensor]
"""Gradient of the loss by the output of a layer, for the images of a pass."""


def calibrate_weights(module: nn.Module) -> None:
    """Choose the grid of every weight below ``module``, from the weight alone."""
    for layer, quantizer in _weights(module):
        quantizer.calibrate(Site(layer.weight, layer, "weight"))


def calibrate_activations(module: nn.Module, run: Callable[[], object]) -> None:
    """Choose the grid of every activation below ``module``, see :func:`calibrate_ranges`."""
    calibrate_ranges(module, run, weights=False)


@torch.no_grad()
def calibrate_ranges(
    module: nn.Module,
    run: Callable[[], object],
    weights: bool = True,
    activations: bool = True,
    gradients: Gradients | None = None,
) -> None:
    """Choose grids below ``module`` in one pass.

    Each quantizer sees what the quantizers before it have already quantized, and the other operand of its product both
    as it is and on the grid that it has so far. In a layer the weight comes before the input, in a product the left
    operand before the right one: a second call goes on where the first one ended. An activation that a pass meets
    several times (a layer that is shared among the levels of a pyramid) chooses from all it meets, in a second pass;
    the weight of such a layer from the first time.

    Args:
        module: holds the quantizers; activations that are switched off are left alone.
        run: one forward pass through ``module``.
        weights: whether grids of weights are chosen.
        activations: whether grids of activations are chosen.
        gradients: for searches that want them, of layers on the same images.
    """
    watch = _Watch(gradients or {})
    shown = []
    if weights:
        for layer, quantizer in _weights(module):
            if quantizer.search is not None and quantizer.search.sees_output:
                shown.append(layer)
            else:
                quantizer.calibrate(Site(layer.weight, layer, "weight"))
    chosen = [q for q in quantizers(module).values() if activations and not q.role.weight and q.enabled]
    if not shown and not chosen:
        return
    try:
        watch.products(child for child in module.modules() if isinstance(child, QuantMatMul))
        watch.layers(shown)
        watch.activations(chosen, _readers(module))
        run()
    finally:
        watch.end()
    repeated = [quantizer for quantizer in chosen if watch.calls[quantizer] > 1]
    if repeated:
        _calibrate_on_all_calls(repeated, run)


class _Watch:
    """Hooks that choose grids while a pass runs.

    Args:
        gradients: of the outputs of layers.

    Attributes:
        calls: how often the pass met each quantizer or layer.
    """

    def __init__(self, gradients: Gradients) -> None:
        self.calls: Counter[nn.Module] = Counter()
        self._gradients = gradients
        self._operands: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def products(self, products: Iterable[QuantMatMul]) -> None:
        """Know both operands of each product while it runs."""

        def remember(product: nn.Module, args: tuple[torch.Tensor, torch.Tensor]) -> None:
            self._operands[product] = args

        def forget(product: nn.Module, _args: object, _output: object) -> None:
            # Operands of all blocks at once would be the peak of memory.
            del self._operands[product]

        for product in products:
            self._handles.append(product.register_forward_pre_hook(remember))
            self._handles.append(product.register_forward_hook(forget))

    def layers(self, layers: Iterable[Any]) -> None:
        """Choose the grid of the weight of each layer when the layer is met."""

        def choose(layer: Any, args: tuple[torch.Tensor]) -> None:
            self.calls[layer] += 1
            if self.calls[layer] == 1:
                site = self._site(layer.weight, layer, "weight", args[0], layer.input_quantizer)
                layer.weight_quantizer.calibrate(site)

        self._handles += [layer.register_forward_pre_hook(choose) for layer in layers]

    def activations(self, chosen: Iterable[Quantizer], readers: Mapping[nn.Module, tuple[Any, Operand]]) -> None:
        """Choose the grid of each quantizer when it is met."""

        def choose(quantizer: Any, args: tuple[torch.Tensor]) -> None:
            self.calls[quantizer] += 1
            layer, operand = readers.get(quantizer, (None, "input"))
            if layer is None:
                site = Site(args[0])
            elif operand == "input":
                site = self._site(args[0], layer, operand, layer.weight, layer.weight_quantizer)
            else:
                left, right = self._operands[layer]
                others = (right, layer.right_quantizer) if operand == "left" else (left, layer.left_quantizer)
                site = self._site(args[0], layer, operand, *others)
            quantizer.calibrate(site)

        self._handles += [quantizer.register_forward_pre_hook(choose) for quantizer in chosen]

    def end(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()

    def _site(
        self, samples: torch.Tensor, layer: Any, operand: Operand, partner: torch.Tensor, other: Quantizer | None
    ) -> Site:
        """Where a quantizer sits; ``other`` is that of its partner."""
        quantized = None
        own = getattr(layer, f"{operand}_quantizer")
        if own.search is not None and own.search.sees_output and other is not None and other.calibrated:
            # Not a call: that would choose its grid.
            quantized = other.forward(partner)
        return Site(samples, layer, operand, partner, self._gradients.get(layer), quantized)


def _weights(module: nn.Module) -> list[tuple[Any, Quantizer]]:
    """Each layer with a quantizer of its weight, and that."""
    found = quantizers(module).items()
    return [(module.get_submodule(path.rpartition(".")[0]), one) for path, one in found if one.role.weight]


def _readers(module: nn.Module) -> dict[nn.Module, tuple[Any, Operand]]:
    """The layer that reads each activation, and as which operand."""
    readers: dict[nn.Module, tuple[Any, Operand]] = {}
    for child in module.modules():
        if isinstance(child, QuantLinear | QuantConv2d) and child.input_quantizer is not None:
            readers[child.input_quantizer] = (child, "input")
        elif isinstance(child, QuantMatMul):
            sides: tuple[tuple[Quantizer | None, Operand], ...] = (
                (child.left_quantizer, "left"),
                (child.right_quantizer, "right"),
            )
            readers |= {quantizer: (child, side) for quantizer, side in sides if quantizer is not None}
    return readers


def _calibrate_on_all_calls(repeated: list[Quantizer], run: Callable[[], object]) -> None:
    """Choose the grids of ``repeated`` from everything that a pass without them shows them."""
    seen: dict[nn.Module, list[torch.Tensor]] = {quantizer: [] for quantizer in repeated}
    handles = []
    for quantizer in repeated:
        quantizer.enabled = False
        handles.append(quantizer.register_forward_pre_hook(lambda one, args: seen[one].append(_rows(one, args[0]))))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for quantizer in repeated:
        quantizer.enabled = True
        quantizer.calibrate(torch.cat(seen.pop(quantizer)))


def _rows(quantizer: Quantizer, samples: torch.Tensor) -> torch.Tensor:
    """``samples`` in a form that maps of several sizes can be joined in; channels stay apart where they count."""
    return samples.flatten() if isinstance(quantizer.granularity, PerTensor) else samples.flatten(0, -2)
