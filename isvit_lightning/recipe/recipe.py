"""A post-training quantization method as a list of choices."""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.layers import QuantConv2d
from isvit_lightning.networks import LayerFactory, OpenedNetwork, Reconstructed, copied, open_quantized, quantizers
from isvit_lightning.recipe.bits import Bits
from isvit_lightning.recipe.files import step_names
from isvit_lightning.recipe.placement import Placement
from isvit_lightning.stages import Step
from isvit_lightning.transforms import Transform

_Choice = TypeVar("_Choice")


@dataclass(frozen=True)
class Recipe:
    """A post-training quantization method: what is quantized how, and which steps are taken.

    Args:
        name: what results call it.
        placement: which quantizer stands in front of a tensor, by its role.
        transforms: exact rewrites of the float network, before anything else.
        steps: what is done, in order.
        range_images: calibration images on which ranges of activations are chosen.
        reconstruct: which units are tuned: those that read the one before them, from the image on (backbone), or all,
            also those that compute their inputs from the images anew.
        changes: fields of steps to change, by the name of the step, such as {stage1: {inputs: {read: float}}} or
            {stage1: {loss: SquaredError}}. Those of steps that only other recipes have are for those.

    Raises:
        IsvitError: there is no step, two have one name, one stands in the wrong place, weights are float at the end, a
            number is out of its range, or a change names nothing.
    """

    name: str = "recipe"
    placement: Placement = field(default_factory=Placement)
    transforms: list[Transform] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    range_images: int = 64
    reconstruct: Reconstructed = "backbone"
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.range_images < 1:
            raise IsvitError(f"model.recipe.range_images is {self.range_images}, expected 1 or more: change it there.")
        names = [step.name for step in self.steps]
        unknown = sorted(self.changes.keys() - set(names))
        if unknown:
            # A configuration may hold changes for another recipe than the one that it is used with.
            unknown = sorted(set(unknown) - step_names())
        if unknown:
            raise IsvitError(
                f"model.recipe.changes names the step {unknown[0]}, expected one of {', '.join(names) or 'none'}: "
                "correct it there."
            )
        steps = [_changed(step, self.changes.get(step.name, {}), step.name) for step in self.steps]
        # Frozen for all others: what a change said is in the steps now, so that equal recipes are equal.
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "changes", {})
        _check_order(steps)

    def transformed(self, model: nn.Module) -> nn.Module:
        """A rewritten copy of ``model``; itself where nothing is rewritten.

        Raises:
            IsvitError: the network cannot be rewritten so.
        """
        if not self.transforms:
            return model
        model = copied(model)
        for transform in self.transforms:
            transform.apply(model)
        return model

    def open(self, model: nn.Module, bits: Bits) -> OpenedNetwork:
        """A copy of ``model`` with the quantizers of this recipe.

        Args:
            model: float network; it is left untouched.
            bits: widths.

        Raises:
            IsvitError: the network cannot be opened, or lacks a role that the placement names.
        """
        factory = LayerFactory(self.placement.build(bits))
        opened = open_quantized(model, factory, self.reconstruct)
        self.placement.require_known(factory.roles)
        return opened

    def give_searches(self, model: nn.Module) -> None:
        """Give the quantizers of a network that was opened by its specs the searches of this recipe."""
        maps = {module.input_quantizer for module in model.modules() if isinstance(module, QuantConv2d)}
        for quantizer in quantizers(model).values():
            quantizer.search = self.placement.of(quantizer.role, quantizer in maps).search


def _check_order(steps: list[Step]) -> None:
    for index, step in enumerate(steps):
        if any(step.name == earlier.name for earlier in steps[:index]):
            raise IsvitError(
                f"Two steps of the recipe have the name {step.name}, expected a name each: change model.recipe.steps."
            )
        if step.needs_ranges and not any(earlier.chooses_ranges for earlier in steps[:index]):
            raise IsvitError(
                f"The step {step.name} needs ranges of activations that nobody has chosen, expected a step before it "
                "that chooses them: add one to model.recipe.steps, such as Ranges."
            )
    for what, done in (
        ("quantizes weights", any(step.quantizes_weights for step in steps)),
        ("chooses ranges of activations", any(step.chooses_ranges for step in steps)),
    ):
        if not done:
            raise IsvitError(
                f"No step of the recipe {what}, expected one: add a step Ranges or Tune to model.recipe.steps."
            )


def _changed(choice: _Choice, values: Mapping[str, Any], path: str) -> _Choice:
    """``choice`` with other values of some fields, section by section."""
    own: Any = choice
    known = {entry.name for entry in dataclasses.fields(own)}
    kinds = get_type_hints(type(own))
    for name in values:
        if name not in known or name == "name":
            raise IsvitError(
                f"model.recipe.changes.{path} names the field {name}, expected one of "
                f"{', '.join(sorted(known - {'name'}))}: correct it there."
            )
    replaced = {
        name: _changed(getattr(own, name), value, f"{path}.{name}")
        if isinstance(value, Mapping) and dataclasses.is_dataclass(getattr(own, name))
        else _checked(value, getattr(own, name), kinds[name], f"{path}.{name}")
        for name, value in values.items()
    }
    return cast("_Choice", dataclasses.replace(own, **replaced))


def _checked(value: Any, before: Any, kind: Any, path: str) -> Any:
    """``value`` if the annotation ``kind`` of a field allows it; a list stands for a tuple.

    Raises:
        IsvitError: it does not.
    """
    if get_origin(kind) is Literal and value not in get_args(kind):
        names = ", ".join(map(str, get_args(kind)))
        raise IsvitError(f"model.recipe.changes.{path} is {value!r}, expected one of {names}: change it there.")
    pieces = _pieces(kind)
    if isinstance(value, str) and value in pieces:
        return pieces[value]()
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if get_origin(kind) is not Literal and not any(_is(value, one) for one in kinds):
        raise IsvitError(f"model.recipe.changes.{path} is {value!r}, expected a value such as {before!r}: change it.")
    return tuple(value) if isinstance(value, list) else value


def _pieces(kind: Any) -> dict[str, Any]:
    """Choices by name where a field takes one of several kinds of them, such as a loss."""
    below = kind.__subclasses__() if inspect.isabstract(kind) else []
    return {piece.__name__: piece for piece in below}


def _is(value: Any, kind: Any) -> bool:
    """Whether ``value`` is plain and of the type ``kind``; a whole number will do for a fraction."""
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(_is, value, kinds))
    if kind in (int, float):
        numbers = int if kind is int else int | float
        return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)
