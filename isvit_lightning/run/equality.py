"""Whether an opened network computes what the float network computes, before anything is calibrated."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.networks import SINGLE, OpenedNetwork, Unit, adapter_for, quantizers, switch
from isvit_lightning.networks.adapter import HasMoreThanUnits
from isvit_lightning.system.faults import is_out_of_memory
from isvit_lightning.transforms import is_foldable, move

_LOG = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest distance of outputs, relative to the float network's, that passes for rounding."""
_IMAGES = 2
_PIXELS = 2**18
"""Of larger images one is enough."""

Calls = Mapping[str, Sequence[tuple[tuple[object, ...], list[Tensor]]]]
"""What parts of the float network read and gave in its own forward pass, call by call, by path."""
Difference = tuple[str, float]
"""What differs, and by how much."""


@torch.no_grad()
def require_equal(model: nn.Module, transformed: nn.Module, opened: OpenedNetwork, images: Tensor) -> None:
    """Refuse a network that, opened and with every quantizer off, gives other outputs than the float network.

    Every unit is compared with what the float network's own module reads and gives in its own forward pass, then the
    outputs of the network. Its own forward pass must meet every quantizer, and nothing but its reader may read a norm
    that a fold will change. Draws of random numbers are given back.

    Args:
        model: float network, in evaluation mode.
        transformed: what the recipe's transforms made of it; the same network where there are none.
        opened: its opened form, which is changed and of no use behind this.
        images: calibration images ``(n, 3, height, width)``, of which the first one or two are looked at.

    Raises:
        IsvitError: the first unit that differs, by name; or the network is random, or cannot read the images.
    """
    device = next(model.parameters()).device
    images = images[: _IMAGES if images[0, 0].numel() <= _PIXELS else 1].to(device)
    _LOG.info("comparing the opened network with the float one on %d calibration images", len(images))
    switch(opened.model, weights=False, activations=False)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        outputs, calls = _observed(transformed, [unit.name for unit in _all_units(opened)], images)
        if any(tensor.isnan().any() for tensor in outputs):
            return  # the choice of ranges tells where
        with _sentence(f"The units of this {type(model).__name__} cannot be run one after the other"):
            found = _first_difference(model, transformed, opened, images, outputs, calls)
        again = _distance(_outputs(transformed, images), outputs) if found else 0.0
    if not again <= TOLERANCE:
        raise IsvitError(
            f"The float network gives other outputs for the same images each time (relative difference {again:.1e}), "
            "expected the same ones in evaluation mode: take its random parts out."
        )
    if found:
        what, distance = found
        raise IsvitError(
            f"The opened network differs from the float one in {what} (relative difference {distance:.1e} with every "
            f"quantizer off), expected at most {TOLERANCE}: merge what was added to the network, take out transforms "
            "that do not fit it, or register an adapter that knows it (docs/architectures.md)."
        )


def _first_difference(
    model: nn.Module, transformed: nn.Module, opened: OpenedNetwork, images: Tensor, outputs: list[Tensor], calls: Calls
) -> Difference | None:
    if transformed is not model:
        distance = _distance(outputs, _outputs(model, images))
        if not distance <= TOLERANCE:
            return "what model.recipe.transforms made of it", distance
    found = _different_unit(opened, images, calls)
    if found:
        return found
    distance = _distance(_outputs_of_all_quantizers(opened, images), outputs)
    if not distance <= TOLERANCE:
        return "what lies between the units or behind them", distance
    return _different_fold(opened, images, calls)


def _different_unit(opened: OpenedNetwork, images: Tensor, calls: Calls, inputs: bool = True) -> Difference | None:
    """The first unit, or what lies before it, that differs from the float network's.

    Args:
        opened: network without quantizers.
        images: images.
        calls: what the float network's modules read and gave.
        inputs: whether what units read is compared too.
    """
    data, before, left = {SINGLE: images}, "the images", {name: iter(seen) for name, seen in calls.items()}
    for unit in _all_units(opened):
        if unit.source is not None:  # it computes its inputs anew, from boxes that rounding may change
            for read, gave in left.get(unit.name, ()):
                distance = _distance(_tensors(opened.model.get_submodule(unit.name)(*read)), gave)
                if not distance <= TOLERANCE:
                    return unit.name, distance
            continue
        entered = unit.entered(data)
        data = unit(entered)
        read, gave = next(left.get(unit.name, iter(())), ((), []))
        for what, own, wanted in (
            (f"what lies between {before} and {unit.name}", entered if inputs else {}, _tensors(read)[:1]),
            (unit.name, data, gave),
        ):
            tensors = list(own.values())
            if list(map(Tensor.numel, tensors)) == list(map(Tensor.numel, wanted)):
                distance = _distance(tensors, wanted)
                if not distance <= TOLERANCE:
                    return what, distance
        before = unit.name
    return None


def _different_fold(opened: OpenedNetwork, images: Tensor, calls: Calls) -> Difference | None:
    """The unit in which a norm is read by something else than the reader that its wire names."""
    wires = [wire for wire in opened.wires if is_foldable(wire)]
    for wire in wires:
        reader: Any = wire.readers[0]
        numbers = torch.ones_like(reader.weight[0])
        # Powers of two, which round nothing.
        move(wire, numbers.index_fill(0, torch.arange(0, len(numbers), 2, device=numbers.device), 0.5), numbers / 4)
    found = _different_unit(opened, images, calls, inputs=False) if wires else None
    if found is None:
        return None
    readers = " or ".join(wire.name for wire in wires if wire.unit == found[0]) or "a layer before it"
    return f"{found[0]}, where something else reads the norm in front of {readers} too", found[1]


def _outputs_of_all_quantizers(opened: OpenedNetwork, images: Tensor) -> list[Tensor]:
    """Outputs of the network's own forward pass, which must meet every quantizer.

    Raises:
        IsvitError: it goes past one.
    """
    unmet: dict[nn.Module, str] = {quantizer: path for path, quantizer in quantizers(opened.model).items()}

    def meet(quantizer: nn.Module, _: object) -> None:
        unmet.pop(quantizer, None)

    handles = [quantizer.register_forward_pre_hook(meet) for quantizer in unmet]
    try:
        outputs = _outputs(opened.model, images)
    finally:
        for handle in handles:
            handle.remove()
    if unmet:
        path = next(iter(unmet.values()))
        raise IsvitError(
            f"The network goes past {path} and {len(unmet) - 1} other quantizers, expected its forward pass to call "
            "each layer that is quantized: call the layers, not functions of their weights."
        )
    return outputs


def _all_units(opened: OpenedNetwork) -> tuple[Unit, ...]:
    """Those that are not tuned too."""
    return adapter_for(opened.model).units()


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What the network's own forward pass gives."""
    adapter = adapter_for(model)
    return _tensors(adapter.run(images) if isinstance(adapter, HasMoreThanUnits) else model(images))


def _observed(model: nn.Module, names: Sequence[str], images: Tensor) -> tuple[list[Tensor], Calls]:
    """Outputs of ``model``, and what its modules of these names read and gave.

    Raises:
        IsvitError: it cannot read the images.
    """
    modules = dict(model.named_modules())
    calls: dict[str, list[tuple[tuple[object, ...], list[Tensor]]]] = {name: [] for name in names if name in modules}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        # Copied, as what follows may change them in place.
        return lambda _, inputs, output: calls[name].append((copy.deepcopy(inputs), copy.deepcopy(_tensors(output))))

    handles = [modules[name].register_forward_hook(watch(name)) for name in calls]
    try:
        with _sentence(f"The network cannot read images of shape {tuple(images.shape)}"):
            return _outputs(model, images), calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _sentence(what: str) -> Iterator[None]:
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise IsvitError(
            f"{what} ({first_line(error)}), expected what its own forward pass takes and does: check the images and "
            "the network, or register an adapter that knows it (docs/architectures.md)."
        ) from error


def _tensors(output: object) -> list[Tensor]:
    """All tensors in nested sequences and mappings."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Largest distance of a tensor, relative to its norm; infinite where shapes differ. Equal infinities are equal."""
    if [each.numel() for each in found] != [each.numel() for each in wanted]:
        return math.inf
    distances = [0.0]
    for own, other in zip(found, wanted, strict=True):
        one, two = own.flatten().double(), other.flatten().double()
        change, norm = torch.where(one == two, 0.0, one - two).norm(), two[two.isfinite()].norm()
        distances.append(float(change / norm) if float(change) else 0.0)
    return max(distances, key=lambda distance: (math.isnan(distance), distance))
