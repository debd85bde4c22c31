"""Which quantizer stands in front of a tensor, by what the tensor is."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import Axes, Build
from isvit_lightning.quantizers import Format, Granularity, PerTensor, Quantizer, Role, Search, Spec, Uniform
from isvit_lightning.recipe.bits import Bits, require_width
from isvit_lightning.search import Percentiles

WEIGHT_PERCENTILES = (0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999)
"""Candidates for weights (method page, section 4)."""


@dataclass(frozen=True)
class Choice:
    """The quantizer of one kind of tensor.

    Args:
        format: number format; null leaves the tensor float.
        granularity: what has a grid of its own: the tensor as a whole, each channel (output channel of a weight), each
            attention head, or each place in the sequence of tokens.
        bits: width of the codes; null takes that of model.bits.
        search: how the grid is chosen.

    Raises:
        IsvitError: bits outside 2 to 8.
    """

    format: Format | None = field(default_factory=Uniform)
    granularity: Literal["tensor", "channel", "head", "token"] = "tensor"
    bits: int | None = None
    search: Search = field(default_factory=Percentiles)

    def __post_init__(self) -> None:
        if self.bits is not None:
            require_width("bits under model.recipe.placement", self.bits)


@dataclass(frozen=True)
class Variant:
    """What is different for a role that an adapter adds; null takes what ``linear_in``, ``map_in`` or ``weight`` say.

    Args:
        format: number format.
        granularity: what has a grid of its own.
        bits: width of the codes.
        search: how the grid is chosen.
        is_float: leave the tensor float.

    Raises:
        IsvitError: bits outside 2 to 8.
    """

    format: Format | None = None
    granularity: Literal["tensor", "channel", "head", "token"] | None = None
    bits: int | None = None
    search: Search | None = None
    is_float: bool = False

    def __post_init__(self) -> None:
        if self.bits is not None:
            require_width("bits under model.recipe.placement.others", self.bits)

    def of(self, choice: Choice) -> Choice:
        """``choice`` with what is different."""
        if self.is_float:
            return replace(choice, format=None)
        names = ("format", "granularity", "bits", "search")
        return replace(choice, **{name: value for name in names if (value := getattr(self, name)) is not None})


def _weight() -> Choice:
    return Choice(granularity="channel", search=Percentiles(WEIGHT_PERCENTILES))


@dataclass(frozen=True)
class Placement:
    """Which quantizer stands in front of a tensor, by its role.

    Args:
        weight: every weight.
        image: input of the patch projection.
        norm_in: input of the norms of the blocks.
        qkv_in: input of the layer that makes queries, keys and values.
        query: queries, scaled.
        key: keys.
        attn_prob: attention probabilities.
        value: values.
        proj_in: input of the projection behind the attention.
        fc1_in: input of the first layer of an MLP.
        gelu_out: input of its second layer.
        reduction_in: input of a patch-merging reduction.
        head_in: input of the classifier.
        linear_in: inputs of linear layers of all other roles.
        map_in: inputs of convolutions of all other roles.
        others: what is different for roles beside these, by name.

    Raises:
        IsvitError: others names a role that has a field.
    """

    weight: Choice = field(default_factory=_weight)
    image: Choice = field(default_factory=lambda: Choice(format=None))
    norm_in: Choice = field(default_factory=lambda: Choice(format=None))
    qkv_in: Choice = field(default_factory=Choice)
    query: Choice = field(default_factory=Choice)
    key: Choice = field(default_factory=Choice)
    attn_prob: Choice = field(default_factory=Choice)
    value: Choice = field(default_factory=Choice)
    proj_in: Choice = field(default_factory=Choice)
    fc1_in: Choice = field(default_factory=Choice)
    gelu_out: Choice = field(default_factory=Choice)
    reduction_in: Choice = field(default_factory=Choice)
    head_in: Choice = field(default_factory=Choice)
    linear_in: Choice = field(default_factory=Choice)
    map_in: Choice = field(default_factory=Choice)
    others: dict[str, Variant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = sorted(self.others.keys() & {entry.name for entry in fields(self)})
        if own:
            raise IsvitError(
                f"model.recipe.placement.others names {own[0]}, expected roles that have no section of their own: "
                f"change model.recipe.placement.{own[0]}."
            )

    def of(self, role: Role, is_map: bool = False) -> Choice:
        """The choice for a tensor.

        Args:
            role: what it is.
            is_map: whether a convolution reads it.
        """
        if role.name in self.others:
            return self.others[role.name].of(self._general(role, is_map))
        if role.name in {entry.name for entry in fields(self)} - {"others", "linear_in", "map_in"}:
            choice: Choice = getattr(self, role.name)
            return choice
        return self._general(role, is_map)

    def _general(self, role: Role, is_map: bool) -> Choice:
        """The choice for roles without a field of their own."""
        if role.weight:
            return self.weight
        return self.map_in if is_map else self.linear_in

    def build(self, bits: Bits) -> Build:
        """What a network is opened with.

        Args:
            bits: widths of the roles that set none.
        """

        def quantizer(role: Role, axes: Axes) -> Quantizer | None:
            choice = self.of(role, axes.map)
            if choice.format is None:
                return None
            width = choice.bits or (bits.weight if role.weight else bits.activation)
            return Quantizer(Spec(choice.format, width, _granularity(choice, role, axes), role), choice.search)

        return quantizer

    def require_known(self, roles: Iterable[Role]) -> None:
        """Refuse roles that a network does not have.

        Args:
            roles: those of the network.

        Raises:
            IsvitError: one of ``others`` is not among them.
        """
        names = {role.name for role in roles}
        strangers = sorted(self.others.keys() - names)
        if strangers:
            raise IsvitError(
                f"The network has no tensor of the role {strangers[0]}, expected one of {', '.join(sorted(names))}: "
                "change model.recipe.placement.others."
            )


def _granularity(choice: Choice, role: Role, axes: Axes) -> Granularity:
    if choice.granularity == "tensor":
        return PerTensor()
    found = {"channel": axes.channel, "head": axes.head, "token": axes.token}[choice.granularity]
    if found is None:
        raise IsvitError(
            f"A tensor of the role {role} has no grid for each {choice.granularity}, expected a granularity that it "
            f"has, such as tensor: change its granularity under model.recipe.placement."
        )
    return found
